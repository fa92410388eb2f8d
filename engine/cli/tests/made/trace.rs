//! What a run leaves, to be compared with another's.

use super::MadeRows;
use tinyforge::train::checkpoint::{self, Saved};
use tinyforge::train::{TrainError, Trainer};

/// What a run leaves.
#[derive(PartialEq)]
pub struct Trace {
    pub losses: Vec<f64>,
    pub norms: Vec<Option<f32>>,
    /// Evaluated at the end.
    pub eval: f64,
    pub tensors: Vec<(String, Vec<u8>)>,
}

impl Trace {
    /// Does so many steps and looks at everything.
    ///
    /// # Errors
    /// The run fails.
    pub fn of(trainer: &mut Trainer, rows: &MadeRows, steps: usize) -> Result<Trace, TrainError> {
        let reports = (0..steps).map(|_| trainer.step(rows)).collect::<Result<Vec<_>, _>>()?;
        let eval = trainer.evaluate(rows, 4)?;
        Ok(Trace {
            losses: reports.iter().map(|r| r.loss).collect(),
            norms: reports.iter().map(|r| r.grad_norm).collect(),
            eval,
            tensors: changed(trainer),
        })
    }
}

/// The bytes of all that a run changes, by name.
pub fn changed(trainer: &mut Trainer) -> Vec<(String, Vec<u8>)> {
    let runner = trainer.runner_mut();
    let saved = checkpoint::tensors(std::iter::once(runner.plan()), 0);
    let bytes = |saved: Saved| {
        let parts = saved.parts.iter().map(|t| runner.fetch(t).expect("is there").to_vec());
        (saved.name, parts.collect::<Vec<_>>().concat())
    };
    saved.into_iter().map(bytes).collect()
}

/// Where two traces differ, in words; nothing where they do not.
pub fn difference(a: &Trace, b: &Trace) -> Option<String> {
    if a == b {
        return None;
    }
    let mut text = format!(
        "losses {:?} and {:?}, norms {:?} and {:?}, evaluated {} and {}",
        a.losses, b.losses, a.norms, b.norms, a.eval, b.eval
    );
    for ((name, x), (other, y)) in a.tensors.iter().zip(&b.tensors) {
        if name != other || x != y {
            let count = x.chunks(4).zip(y.chunks(4)).filter(|(x, y)| x != y).count();
            text += &format!("; `{name}`/`{other}`: {count} of {} words", x.len() / 4);
        }
    }
    Some(text)
}
