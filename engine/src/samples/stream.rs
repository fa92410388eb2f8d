//! Samples as a board streams them: `TFSM`, the number of samples, the numbers of each; then each label (i32) and its
//! numbers (i8). All little-endian.

use super::Samples;
use std::io::{Result, Write};

/// Writes samples in this order.
///
/// # Errors
/// The writer's.
///
/// # Panics
/// `order` names a sample that is not there, or more of them than 2^32: a fault of the caller.
pub fn write(to: &mut dyn Write, samples: &Samples, order: &[usize]) -> Result<()> {
    let len = |n: usize| u32::try_from(n).expect("a stream has fewer than 2^32 samples");
    to.write_all(b"TFSM")?;
    to.write_all(&len(order.len()).to_le_bytes())?;
    to.write_all(&len(samples.shape.iter().product()).to_le_bytes())?;
    for &i in order {
        to.write_all(&(samples.labels[i] as i32).to_le_bytes())?;
        to.write_all(bytemuck::cast_slice(samples.sample(i)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_stand_before_their_numbers() {
        let samples = Samples::new([1, 2, 1], vec![1, -2, 3, -4], vec![7, 5], Vec::new());
        let mut bytes = Vec::new();
        write(&mut bytes, &samples, &[1, 0, 1]).unwrap();
        let wanted = [&b"TFSM"[..], &[3, 0, 0, 0, 2, 0, 0, 0], &[5, 0, 0, 0, 3, 252], &[7, 0, 0, 0, 1, 254]].concat();
        assert_eq!(bytes, [wanted, vec![5, 0, 0, 0, 3, 252]].concat());
    }
}
