//! The passes: one a file, one contract a pass, and none calls another. `pipeline` in `compile.rs` is the only place
//! that knows their order.

pub mod differentiate;
pub mod fuse;
pub mod fuse_channels;
pub mod fuse_rows;
pub mod fuse_update;
pub mod host_update;
pub mod layer_major;
pub mod live;
pub mod order;
pub mod parameterize;
pub mod pipeline;
pub mod place;
pub mod prune;
pub mod quantize;
pub mod recompute;
pub mod spill;
pub mod split_tables;
pub mod split_update;
pub mod update;
