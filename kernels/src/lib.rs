//! CPU kernels of Tinyforge: the f32/bf16 family for desktops and boards with an operating system, and the int8
//! family, shared by host and microcontroller.
//!
//! Kernels are functions over slices: they allocate nothing, decide nothing and know nothing of plans.
#![cfg_attr(not(feature = "std"), no_std)]

#[cfg(feature = "std")]
pub mod f32;
pub mod int8;
#[cfg(feature = "std")]
pub mod par;
pub mod random;
