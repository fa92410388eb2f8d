//! Samples that follow from the row of an op that takes tensors of one type and gives tensors of that type, as
//! elementwise ops and their gradients do.

use super::{Sample, Size, one};
use tinyforge_compiler::ir::attrs::Attrs;
use tinyforge_compiler::ir::ops::Op;
use tinyforge_compiler::ir::types::Type;

/// Samples with as many operands as the row takes, of values far from 0 too; none where the row has attributes or an
/// operand that may be absent, changes an operand, or refuses equal types, or where a result has another type.
pub fn family(op: Op, z: Size) -> Vec<Sample> {
    let shapes: [&[u32]; 3] = [&[z.tokens(), z.k], &[z.n], &[z.rows, 2, z.t, z.n]];
    if !shapes.iter().all(|shape| keeps(op, &Type::f32(shape))) {
        return vec![];
    }
    shapes.map(|shape| one(op, z, &[], |m| (0..op.def().arity.1).map(|_| m.wide(shape)).collect())).into()
}

/// Whether operands of this type, and nothing else, give results of this type.
fn keeps(op: Op, ty: &Type) -> bool {
    let def = op.def();
    let (least, most) = def.arity;
    let none = Attrs::of(def.attrs, &[]);
    let is_plain = least == most && most > 0 && def.attrs.is_empty() && (def.mutates)(&none) == 0;
    let outs = || (def.infer)(&vec![ty.clone(); most], &none).unwrap_or_default();
    is_plain && !outs().is_empty() && outs().iter().all(|out| out == ty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples::size;

    #[test]
    fn only_what_the_row_tells_is_tried() {
        let count = |op| family(op, size(2, 3, 4, 5)).len();
        assert_eq!([Op::Mul, Op::Relu, Op::TanhGrad, Op::SwigluGrad].map(count), [3; 4]);
        // Attributes, an operand that may be absent, one that changes, operands of several types, a result of another.
        let special = [Op::Scale, Op::Fill, Op::NormSq, Op::Zero, Op::AddRow, Op::Embedding, Op::MseLoss, Op::I8Add];
        assert_eq!(special.map(count), [0; 8]);
    }
}
