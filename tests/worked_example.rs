//! The cell worked by hand in `docs/lstm.md`, on every device, to the six digits printed there.

mod common;

use approx::assert_abs_diff_eq;
use common::gpu;
use everloop::layers::LstmConfig;
use everloop::{Device, Parameters, Recorder, Result, Rng, Store, Workspace, loss};

fn run(device: &Device) -> Result<()> {
    let mut parameters = Parameters::new();
    let lstm = LstmConfig::new(1, 1).with_bias(everloop::layers::Bias::None).declare(
        &mut parameters,
        "lstm",
        &mut Rng::new(0),
    )?;
    parameters.set("lstm.weight_ih_l0", &[0.5, 0.5, 1.0, 0.5])?;
    parameters.set("lstm.weight_hh_l0", &[0.25, 0.5, -0.5, 0.75])?;
    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[2, 1, 1])?;
    rec.want_gradient(&x)?;
    let wanted = rec.input("wanted", &[1, 1])?;
    let out = lstm.record(&mut rec, &x, None)?;
    let loss = loss::mean_squared_error(&mut rec, "loss", &out.state[0].h, &wanted)?;
    rec.backward(&loss)?;
    let plan = std::sync::Arc::new(rec.finish());
    let mut workspace = Workspace::new(&Store::new(device, &parameters)?, plan.clone())?;
    workspace.write(&x, &[1.0, -1.0])?;
    workspace.write(&wanted, &[0.5])?;
    workspace.run()?;

    let gates = [0.622459, 0.622459, 0.761594, 0.622459, 0.393816, 0.410330, -0.813537, 0.427049];
    let dgates = [-0.029479, 0.0, -0.043058, 0.005428, 0.090368, -0.053372, -0.061966, 0.033910];
    for (slot, numbers) in [
        ("lstm.0.gates", &gates[..]),
        ("lstm.0.c", &[0.0, 0.474061, -0.125862]),
        ("lstm.0.h", &[0.0, 0.274800, -0.053467]),
        ("loss", &[0.306326]),
        ("lstm.0.dh", &[0.018230, 0.052321, -1.106935]),
        ("lstm.0.dc", &[-0.102524, -0.164709, -0.465306]),
        ("lstm.0.dgates", &dgates[..]),
        ("lstm.dweight_ih_l0", &[-0.119847, 0.053372, 0.018908, -0.028482]),
        ("lstm.dweight_hh_l0", &[0.024833, -0.014667, -0.017028, 0.009318]),
        ("dx", &[-0.055083, -0.026513]),
    ] {
        let found = workspace.read::<f64>(&plan.tensor(slot)?)?;
        println!("{slot} {found:?}");
        assert_eq!(found.len(), numbers.len(), "{slot}");
        for (found, number) in found.iter().zip(numbers) {
            assert_abs_diff_eq!(*found, *number, epsilon = 1e-6);
        }
    }
    Ok(())
}

#[test]
fn the_cell_worked_by_hand() {
    for device in [Some(Device::reference()), Some(Device::cpu_f64()), Some(Device::cpu()), gpu()].into_iter().flatten()
    {
        run(&device).unwrap_or_else(|e| panic!("{device}: {e}"));
    }
}
