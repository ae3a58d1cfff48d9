//! Bytes of a weights file: refused with a short message, or read as the reference parser reads them; then surveyed
//! and imported. How to run it stands in the documentation of `everloop::weights`.
#![no_main]

use everloop::weights::layout::Layout;
use everloop::weights::{Import, Weights};
use everloop::layers::{DenseConfig, LstmConfig};
use everloop::{Parameters, Rng, plan::Direction};
use safetensors::SafeTensors;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let weights = match Weights::from_bytes(bytes) {
        Ok(weights) => weights,
        Err(error) => return check(&error.to_string()),
    };
    let reference = SafeTensors::deserialize(bytes).expect("the reference parser refuses what we read");
    assert_eq!(reference.len(), weights.tensors().len());
    for tensor in weights.tensors() {
        let view = reference.tensor(tensor.name()).expect("a name that the reference parser has not");
        assert_eq!(view.dtype().to_string(), tensor.dtype().name());
        assert_eq!((view.shape(), view.data()), (tensor.shape(), weights.bytes(tensor)));
    }
    weights.survey().to_string().lines().for_each(check);
    for (name, _) in weights.configs() {
        match weights.config::<LstmConfig>(name) {
            Ok(config) => config.validate().expect("a config that was validated"),
            Err(error) => check(&error.to_string()),
        }
        if let Err(error) = weights.config::<DenseConfig>(name) {
            check(&error.to_string());
        }
    }
    let mut parameters = Parameters::new();
    let lstm = LstmConfig::new(2, 1).declare(&mut parameters, "", &mut Rng::new(1)).expect("a legal LSTM");
    let allowing = Import::new().with_missing().with_unused().with_unfit();
    for import in [Import::new(), allowing] {
        if let Err(error) = weights.import(&mut parameters, &import) {
            check(&error.to_string());
        }
        let forget_bias = 1.0;
        for layout in [
            Layout::PyTorch,
            Layout::Keras,
            Layout::TensorFlow { forget_bias },
            Layout::Onnx,
            Layout::DeepBreathe { forget_bias },
            Layout::Textbook { forget_bias },
        ] {
            let at = (0, Direction::Forward);
            if let Err(error) = weights.import_layer(&mut parameters, &lstm, at, layout, &import) {
                check(&error.to_string());
            }
        }
    }
    assert!(parameters.block().iter().all(|v| v.is_finite()));
});

fn check(line: &str) {
    assert!(line.chars().count() < 400 && !line.chars().any(char::is_control), "{line:?}");
}
