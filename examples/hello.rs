//! Trains an LSTM to predict the next values of waves, on the best device of this machine.

use everloop::layers::LstmConfig;
use everloop::optimizer::SgdConfig;
use everloop::{Device, Parameters, Recorder, Result, Rng, Store, Workspace, loss};

fn main() -> Result<()> {
    let mut parameters = Parameters::new();
    let lstm = LstmConfig::new(16, 16).declare(&mut parameters, "lstm", &mut Rng::new(1))?;
    let mut rec = Recorder::new(&parameters);
    let (x, next) = (rec.input("x", &[32, 8, 16])?, rec.input("next", &[32, 8, 16])?); // [steps, batch, values]
    let h = lstm.record(&mut rec, &x, None)?.output;
    let loss = loss::mean_squared_error(&mut rec, "loss", &h, &next)?;
    rec.backward(&loss)?;
    SgdConfig::new(5.0).record(&mut rec)?;
    let device = Device::auto();
    let store = Store::new(&device, &parameters)?;
    let mut workspace = Workspace::new(&store, rec.finish())?;
    let waves: Vec<f32> = (0..33 * 128).map(|e| 0.7 * ((e / 128) as f32 * 0.3 + (e % 128) as f32).sin()).collect();
    workspace.write(&x, &waves[..32 * 128])?;
    workspace.write(&next, &waves[128..])?;
    for step in 1..=1000 {
        workspace.run()?;
        if step % 200 == 0 {
            println!("step {step}: loss {:.5} on {}", workspace.scalar(&loss)?, device.name());
        }
    }
    Ok(())
}
