//! Activations, element by element.
//!
//! ```text
//! for i in 0..len { y[i] = f(x[i]) }
//! for i in 0..len { dx[i] = dy[i] * f'(x[i]) }
//! ```
//! In place: `x == None` takes the input from the output's buffer, `dy == None` the gradient from `dx`'s.
//! Bound: 8 bytes an element forward, 12 backward, over memory bandwidth. Scratch: 0 bytes.

use super::map::{Elementwise, Op, Src, map};
use super::math::{normal, sigmoid as logistic, tanh as hyperbolic};
use super::simd::Simd;
use crate::par::Par;

/// Activations, each with its gradient: the two functions, and what they do to sixteen elements at once; and the table
/// of them all. A function's name is its op's.
macro_rules! activations {
    ($(
        $(#[$doc:meta])* $name:ident, $(#[$grad_doc:meta])* $grad:ident($saved:ident),
        $Forward:ident = |$s:ident, $x:ident| $forward:expr,
        $Backward:ident = |$gs:ident, $gx:ident, $gdy:ident| $backward:expr;
    )*) => {
        $(
            #[derive(Clone, Copy)]
            struct $Forward;

            impl Op<1, 1> for $Forward {
                #[inline(always)]
                fn apply<S: Simd>(self, $s: S, [$x]: [S::V; 1]) -> [S::V; 1] {
                    [$forward]
                }
            }

            #[derive(Clone, Copy)]
            struct $Backward;

            impl Op<2, 1> for $Backward {
                #[inline(always)]
                fn apply<S: Simd>(self, $gs: S, [$gx, $gdy]: [S::V; 2]) -> [S::V; 1] {
                    [$backward]
                }
            }

            $(#[$doc])*
            pub fn $name(par: &Par, x: Option<&[f32]>, y: &mut [f32]) {
                map(par, $Forward, [Src::or(x, 0)], [y]);
            }

            $(#[$grad_doc])*
            pub fn $grad(par: &Par, $saved: &[f32], dy: Option<&[f32]>, dx: &mut [f32]) {
                map(par, $Backward, [Src::Slice($saved), Src::or(dy, 0)], [dx]);
            }
        )*

        /// The functions of this table by name.
        pub const KERNELS: &[(&str, Elementwise)] = &[$(
            (stringify!($name), Elementwise::Forward($name)),
            (stringify!($grad), Elementwise::Backward($grad)),
        )*];
    };
}

activations! {
    /// `y = max(x, 0)`; 0 for NaN.
    relu,
    /// `dx = dy` where `y > 0`, else 0. Reads the output `y`; the input does as well.
    relu_grad(y),
    Relu = |s, x| s.max(x, s.zero()),
    ReluGrad = |s, y, dy| s.select(s.lt(s.zero(), y), dy, s.zero());

    /// `y = min(max(x, 0), 6)`; 0 for NaN.
    relu6,
    /// `dx = dy` where `0 < y < 6`, else 0. Reads the output `y`; the input does as well.
    relu6_grad(y),
    Relu6 = |s, x| s.min(s.max(x, s.zero()), s.splat(6.0)),
    Relu6Grad = |s, y, dy| {
        let inside = s.and(s.lt(s.zero(), y), s.lt(y, s.splat(6.0)));
        s.select(inside, dy, s.zero())
    };

    /// `y = x Phi(x)`, `Phi` the normal distribution (the form with erf).
    gelu,
    /// `dx = dy (Phi(x) + x phi(x))`. Reads the input `x`.
    gelu_grad(x),
    Gelu = |s, x| s.mul(x, normal(s, x).0),
    GeluGrad = |s, x, dy| {
        let (integral, density) = normal(s, x);
        s.mul(dy, s.fma(x, density, integral))
    };

    /// `y = x (1 + tanh(u)) / 2`, `u = sqrt(2/pi) (x + 0.044715 x^3)`.
    gelu_tanh,
    /// `dx = dy ((1 + t) / 2 + x (1 - t^2) u' / 2)`, `t = tanh(u)`, `u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2)`. Reads the
    /// input `x`.
    gelu_tanh_grad(x),
    GeluTanh = |s, x| {
        let t = gelu_tanh_inner(s, x);
        s.mul(s.mul(x, s.splat(0.5)), s.add(t, s.splat(1.0)))
    },
    GeluTanhGrad = |s, x, dy| {
        let t = gelu_tanh_inner(s, x);
        let slope = s.fma(s.mul(x, x), s.splat(3.0 * GELU_TANH.1), s.splat(1.0));
        let slope = s.mul(slope, s.splat(GELU_TANH.0));
        let bend = s.mul(s.mul(x, slope), s.neg_fma(t, t, s.splat(1.0)));
        s.mul(s.mul(dy, s.splat(0.5)), s.add(bend, s.add(t, s.splat(1.0))))
    };

    /// `y = x sigmoid(x)`.
    silu,
    /// `dx = dy q (1 + x (1 - q))`, `q = sigmoid(x)`. Reads the input `x`.
    silu_grad(x),
    Silu = |s, x| s.mul(x, logistic(s, x)),
    SiluGrad = |s, x, dy| s.mul(dy, silu_slope(s, x, logistic(s, x)));

    /// `y = 1 / (1 + e^-x)`.
    sigmoid,
    /// `dx = dy y (1 - y)`. Reads the output `y`.
    sigmoid_grad(y),
    Sigmoid = |s, x| logistic(s, x),
    SigmoidGrad = |s, y, dy| s.mul(dy, s.mul(y, s.sub(s.splat(1.0), y)));

    /// `y = tanh(x)`.
    tanh,
    /// `dx = dy (1 - y^2)`. Reads the output `y`.
    tanh_grad(y),
    Tanh = |s, x| hyperbolic(s, x),
    TanhGrad = |s, y, dy| s.mul(dy, s.neg_fma(y, y, s.splat(1.0)));
}

/// `sqrt(2 / pi)` and the cubic's factor of the tanh form of GELU.
const GELU_TANH: (f32, f32) = (0.797_884_6, 0.044_715);

#[inline(always)]
fn gelu_tanh_inner<S: Simd>(s: S, x: S::V) -> S::V {
    let cubic = s.fma(s.mul(x, x), s.splat(GELU_TANH.1), s.splat(1.0));
    hyperbolic(s, s.mul(s.mul(x, cubic), s.splat(GELU_TANH.0)))
}

/// `silu'(x)` from `q = sigmoid(x)`.
#[inline(always)]
fn silu_slope<S: Simd>(s: S, x: S::V, q: S::V) -> S::V {
    let one = s.splat(1.0);
    s.mul(q, s.fma(x, s.sub(one, q), one))
}

#[derive(Clone, Copy)]
struct Swiglu;

impl Op<2, 1> for Swiglu {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [gate, up]: [S::V; 2]) -> [S::V; 1] {
        [s.mul(s.mul(gate, logistic(s, gate)), up)]
    }
}

/// `y = silu(gate) * up`. `gate == None`: `y` holds the gate.
pub fn swiglu(par: &Par, gate: Option<&[f32]>, up: &[f32], y: &mut [f32]) {
    map(par, Swiglu, [Src::or(gate, 0), Src::Slice(up)], [y]);
}

#[derive(Clone, Copy)]
struct SwigluGrad;

impl Op<3, 2> for SwigluGrad {
    #[inline(always)]
    fn apply<S: Simd>(self, s: S, [gate, up, dy]: [S::V; 3]) -> [S::V; 2] {
        let q = logistic(s, gate);
        let dgate = s.mul(s.mul(dy, up), silu_slope(s, gate, q));
        let dup = s.mul(dy, s.mul(gate, q));
        [dgate, dup]
    }
}

/// `dgate = dy up silu'(gate)`, `dup = dy silu(gate)`. `gate == None`: `dgate` holds the gate; `up == None`: `dup`
/// holds the up projection.
pub fn swiglu_grad(
    par: &Par,
    gate: Option<&[f32]>,
    up: Option<&[f32]>,
    dy: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    map(par, SwigluGrad, [Src::or(gate, 0), Src::or(up, 1), Src::Slice(dy)], [dgate, dup]);
}
