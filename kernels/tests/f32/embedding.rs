use crate::common::*;
use half::{bf16, f16};
use tinyforge_kernels::f32::dense::{Mat, MatData};
use tinyforge_kernels::f32::embedding::*;
use tinyforge_kernels::f32::quant;
use tinyforge_plan::DType;

#[test]
fn rows_are_gathered_from_every_storage() {
    let (vocab, cols) = (11, 64);
    let w = values(1, vocab * cols);
    let tokens = integers(2, 40, 0, vocab as i32);
    let b: Vec<bf16> = w.iter().map(|&x| bf16::from_f32(x)).collect();
    let h: Vec<f16> = w.iter().map(|&x| f16::from_f32(x)).collect();
    let mut q = vec![0; vocab * cols / 32 * 34];
    assert!(quant::quantise(DType::Q8_0, &w, &mut q));
    let mut decoded = vec![0.0; w.len()];
    quant::dequantise(DType::Q8_0, &q, &mut decoded);
    let cases = [
        (MatData::F32(&w), w.clone()),
        (MatData::BF16(&b), b.iter().map(|x| x.to_f32()).collect()),
        (MatData::F16(&h), h.iter().map(|x| x.to_f32()).collect()),
        (MatData::Blocks(DType::Q8_0, &q), decoded),
    ];
    for (data, expected) in cases {
        let mat = Mat { data, rows: vocab, cols, stride: cols };
        let [y] = everywhere([tokens.len() * cols], |par, [y]| embedding(par, &mat, &tokens, y).unwrap());
        for (t, &token) in tokens.iter().enumerate() {
            let row = &expected[token as usize * cols..][..cols];
            assert_same(&y[t * cols..(t + 1) * cols], row, "row");
        }
    }
}

#[test]
fn tokens_outside_the_vocabulary_are_errors() {
    let w = [0.0; 6];
    let mat = Mat { data: MatData::F32(&w), rows: 3, cols: 2, stride: 2 };
    for (token, at) in [(-1, 1), (3, 1), (i32::MAX, 1), (i32::MIN, 1)] {
        let error = embedding(&one(), &mat, &[0, token], &mut [0.0; 4]).unwrap_err();
        assert_eq!((error.value, error.at, error.limit), (token, at, 3));
        assert!(error.to_string().contains(&token.to_string()));
        let mut scratch = vec![0; embedding_grad_scratch_bytes(2, 1)];
        let result =
            embedding_grad(&one(), &[0.0; 4], &[0, token], 2, 2, (3, 0), Onto::Running, &mut [0.0; 6], &mut scratch);
        assert_eq!(result, Err(error));
    }
}

#[test]
fn gradient_adds_the_rows_of_each_token() {
    for (rows, seq, cols, vocab) in [(1, 1, 1, 1), (2, 5, 3, 4), (3, 17, 65, 7), (2, 40, 130, 1000)] {
        let tokens = integers(3, rows * seq, 0, vocab as i32);
        let (dx, dw0) = (values(4, tokens.len() * cols), values(5, vocab * cols));
        let [dw, more] = everywhere([dw0.len(); 2], |par, [dw, more]| {
            let mut scratch = vec![0xff; embedding_grad_scratch_bytes(tokens.len(), par.threads())];
            embedding_grad(par, &dx, &tokens, seq, cols, (vocab, 0), Onto::Zero, dw, &mut scratch).unwrap();
            more.copy_from_slice(&dw0);
            embedding_grad(par, &dx, &tokens, seq, cols, (vocab, 0), Onto::Running, more, &mut scratch).unwrap();
        });
        let mut expected = vec![0.0; dw0.len()];
        for (t, &token) in tokens.iter().enumerate() {
            (0..cols).for_each(|c| expected[token as usize * cols + c] += f64::from(dx[t * cols + c]));
        }
        assert_close(&dw, &expected, 1e-6);
        let mut by_row = dw0.clone();
        for (dx, tokens) in dx.chunks(seq * cols).zip(tokens.chunks(seq)) {
            let mut scratch = vec![0; embedding_grad_scratch_bytes(seq, 1)];
            embedding_grad(&one(), dx, tokens, seq, cols, (vocab, 0), Onto::Running, &mut by_row, &mut scratch)
                .unwrap();
        }
        assert_same(&more, &by_row, "micro-batches");
    }
}

#[test]
fn rows_without_a_token_are_not_touched() {
    let mut dw = vec![-0.0; 6];
    dw[4] = f32::NAN;
    let mut scratch = vec![0; embedding_grad_scratch_bytes(1, 1)];
    embedding_grad(&one(), &[1.0, 2.0], &[1], 1, 2, (3, 0), Onto::Running, &mut dw, &mut scratch).unwrap();
    assert_same(&dw, &[-0.0, -0.0, 1.0, 2.0, f32::NAN, -0.0], "rows");
}

/// Every cut of the table into panels gives the rows of the whole.
#[test]
fn panels_of_rows_are_rows_of_the_whole() {
    let (rows, seq, cols, vocab) = (3, 17, 65, 23);
    let tokens = integers(3, rows * seq, 0, vocab as i32);
    let (dx, dw0) = (values(4, tokens.len() * cols), values(5, vocab * cols));
    let mut scratch = vec![0xff; embedding_grad_scratch_bytes(tokens.len(), 1)];
    for onto in [Onto::Zero, Onto::Running, Onto::Whole] {
        let mut whole = dw0.clone();
        embedding_grad(&one(), &dx, &tokens, seq, cols, (vocab, 0), onto, &mut whole, &mut scratch).unwrap();
        for height in [1, 4, 7, 22] {
            let mut panels = dw0.clone();
            for (i, dw) in panels.chunks_mut(height * cols).enumerate() {
                embedding_grad(&one(), &dx, &tokens, seq, cols, (vocab, i * height), onto, dw, &mut scratch).unwrap();
            }
            assert_same(&panels, &whole, &format!("{onto:?} by {height} rows"));
        }
    }
}
