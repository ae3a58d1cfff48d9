//! Trains an LSTM to predict the next value of sine waves, on the best device of this machine.

use everloop::layers::{DenseConfig, LstmConfig};
use everloop::optimizer::SgdConfig;
use everloop::{Device, Parameters, Recorder, Result, Rng, Workspace, loss};

fn main() -> Result<()> {
    let (steps, batch, hidden) = (32, 16, 32);
    let (mut parameters, mut rng) = (Parameters::new(), Rng::new(1));
    let lstm = LstmConfig::new(1, hidden).declare(&mut parameters, "lstm", &mut rng)?;
    let head = DenseConfig::new(hidden, 1).declare(&mut parameters, "head", &mut rng)?;

    let mut rec = Recorder::new(&parameters);
    let x = rec.input("x", &[steps, batch, 1])?;
    let next = rec.input("next", &[steps, batch, 1])?;
    let h = lstm.record(&mut rec, &x, None)?.output;
    let y = head.record(&mut rec, &h)?;
    let loss = loss::mean_squared_error(&mut rec, "loss", &y, &next)?;
    rec.backward(&loss)?;
    SgdConfig::new(0.2).with_clip_norm(1.0).record(&mut rec)?;

    let device = Device::auto();
    println!("{device}");
    let mut workspace = Workspace::new(&device, rec.finish(), &parameters)?;
    let wave = |e: usize| ((e / batch) as f64 * 0.3 + (e % batch) as f64).sin();
    let values: Vec<f64> = (0..(steps + 1) * batch).map(wave).collect();
    workspace.write(&x, &values[..steps * batch])?;
    workspace.write(&next, &values[batch..])?;
    for step in 0..=1000 {
        workspace.run()?;
        if step % 200 == 0 {
            println!("step {step:>4}: loss {:.6}", workspace.scalar(&loss)?);
        }
    }
    Ok(())
}
