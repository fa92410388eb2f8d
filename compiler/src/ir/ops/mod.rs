//! The op table: one row an op. A row is all the compiler knows of an op; there is no other `match` over ops.
//!
//! A row says the shape rule, the naive f64 definition, what backward may read, the gradient, which result may
//! take which operand's place in memory, and what the op costs. From it come the verifier's checks, the text
//! form, the reference interpreter, the gradient and conformance tests and the printed op list.

mod activation;
mod attention;
mod conv;
mod def;
mod elementwise;
mod embedding;
mod int8;
mod linear;
mod loss;
mod norm;
mod pool;
mod update;

pub use conv::Moves;
pub use def::{Acc, Eval, OpDef, Saves, Tensor, Vjp, panel};

macro_rules! op_table {
    ($($op:ident => $row:path,)*) => {
        /// The name of an op; its row is [`Op::def`].
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        #[expect(missing_docs, reason = "each op is described where its row stands")]
        pub enum Op { $($op),* }

        impl Op {
            /// Every op, in the order of the table.
            pub const ALL: &'static [Op] = &[$(Op::$op),*];

            /// The op's row.
            pub fn def(self) -> &'static OpDef {
                const ROWS: &[OpDef] = &[$($row),*];
                &ROWS[self as usize]
            }
        }
    };
}

op_table! {
    Add => elementwise::ADD,
    AddScaled => elementwise::ADD_SCALED,
    AddRow => elementwise::ADD_ROW,
    Mul => elementwise::MUL,
    Scale => elementwise::SCALE,
    Fill => elementwise::FILL,
    Assign => elementwise::ASSIGN,
    Zero => elementwise::ZERO,
    Reshape => elementwise::RESHAPE,
    SumRows => elementwise::SUM_ROWS,
    GatherCols => elementwise::GATHER_COLS,
    ScatterCols => elementwise::SCATTER_COLS,
    SliceCols => elementwise::SLICE_COLS,
    ConcatCols => elementwise::CONCAT_COLS,
    Relu => activation::RELU,
    ReluGrad => activation::RELU_GRAD,
    Relu6 => activation::RELU6,
    Relu6Grad => activation::RELU6_GRAD,
    Gelu => activation::GELU,
    GeluGrad => activation::GELU_GRAD,
    GeluTanh => activation::GELU_TANH,
    GeluTanhGrad => activation::GELU_TANH_GRAD,
    Silu => activation::SILU,
    SiluGrad => activation::SILU_GRAD,
    Sigmoid => activation::SIGMOID,
    SigmoidGrad => activation::SIGMOID_GRAD,
    Tanh => activation::TANH,
    TanhGrad => activation::TANH_GRAD,
    Swiglu => activation::SWIGLU,
    SwigluGrad => activation::SWIGLU_GRAD,
    RmsNorm => norm::RMS_NORM,
    RmsNormGradX => norm::RMS_NORM_GRAD_X,
    RmsNormGradW => norm::RMS_NORM_GRAD_W,
    AddRmsNorm => norm::ADD_RMS_NORM,
    LayerNorm => norm::LAYER_NORM,
    LayerNormGradX => norm::LAYER_NORM_GRAD_X,
    LayerNormGradW => norm::LAYER_NORM_GRAD_W,
    BatchNorm => norm::BATCH_NORM,
    BatchNormGrad => norm::BATCH_NORM_GRAD,
    BatchNormEval => norm::BATCH_NORM_EVAL,
    Linear => linear::LINEAR,
    LinearPart => linear::LINEAR_PART,
    LinearSub => linear::LINEAR_SUB,
    LinearAdd => linear::LINEAR_ADD,
    LinearGradX => linear::LINEAR_GRAD_X,
    LinearGradW => linear::LINEAR_GRAD_W,
    Embedding => embedding::EMBEDDING,
    EmbeddingPart => embedding::EMBEDDING_PART,
    EmbeddingGrad => embedding::EMBEDDING_GRAD,
    Rope => attention::ROPE,
    Attention => attention::ATTENTION,
    AttentionGrad => attention::ATTENTION_GRAD,
    KvWrite => attention::KV_WRITE,
    AttentionCached => attention::ATTENTION_CACHED,
    Softmax => loss::SOFTMAX,
    SoftmaxGrad => loss::SOFTMAX_GRAD,
    CrossEntropy => loss::CROSS_ENTROPY,
    CrossEntropyGrad => loss::CROSS_ENTROPY_GRAD,
    LinearCrossEntropy => loss::LINEAR_CROSS_ENTROPY,
    LinearCrossEntropyGrad => loss::LINEAR_CROSS_ENTROPY_GRAD,
    LinearCrossEntropyGradW => loss::LINEAR_CROSS_ENTROPY_GRAD_W,
    LinearCrossEntropySums => loss::LINEAR_CROSS_ENTROPY_SUMS,
    CrossEntropyOfSums => loss::CROSS_ENTROPY_OF_SUMS,
    LinearCrossEntropyGradH => loss::LINEAR_CROSS_ENTROPY_GRAD_H,
    MseLoss => loss::MSE_LOSS,
    MseLossGrad => loss::MSE_LOSS_GRAD,
    Conv2d => conv::CONV2D,
    Conv2dGradX => conv::CONV2D_GRAD_X,
    Conv2dGradW => conv::CONV2D_GRAD_W,
    SumChannels => conv::SUM_CHANNELS,
    MaxPool => pool::MAX_POOL,
    MaxPoolGrad => pool::MAX_POOL_GRAD,
    AvgPool => pool::AVG_POOL,
    AvgPoolGrad => pool::AVG_POOL_GRAD,
    GlobalAvgPool => pool::GLOBAL_AVG_POOL,
    GlobalAvgPoolGrad => pool::GLOBAL_AVG_POOL_GRAD,
    I8Conv2d => int8::conv::CONV2D,
    I8Depthwise => int8::conv::DEPTHWISE,
    I8ScaleGrad => int8::conv::SCALE_GRAD,
    I8GradB => int8::conv::GRAD_B,
    I8Conv2dGradX => int8::conv::CONV2D_GRAD_X,
    I8Conv2dGradW => int8::conv::CONV2D_GRAD_W,
    I8DepthwiseGradX => int8::conv::DEPTHWISE_GRAD_X,
    I8DepthwiseGradW => int8::conv::DEPTHWISE_GRAD_W,
    I8Bottleneck => int8::bottleneck::BOTTLENECK,
    I8BottleneckGradUpdate => int8::bottleneck::BOTTLENECK_GRAD_UPDATE,
    I8Add => int8::elementwise::ADD,
    I8AddUp => int8::elementwise::ADD_UP,
    I8Softmax => int8::elementwise::SOFTMAX,
    I8AvgPool => int8::pool::AVG_POOL,
    I8AvgPoolAway => int8::pool::AVG_POOL_AWAY,
    I8SumPool => int8::pool::SUM_POOL,
    I8AvgPoolGrad => int8::pool::AVG_POOL_GRAD,
    I8MaxPool => int8::pool::MAX_POOL,
    I8MaxPoolGrad => int8::pool::MAX_POOL_GRAD,
    I8CrossEntropy => int8::loss::CROSS_ENTROPY,
    I8CrossEntropyGrad => int8::loss::CROSS_ENTROPY_GRAD,
    I8Update => int8::update::UPDATE,
    I8Conv2dGradWUpdate => int8::update::CONV2D_GRAD_W_UPDATE,
    I8DepthwiseGradWUpdate => int8::update::DEPTHWISE_GRAD_W_UPDATE,
    I8GradBUpdate => int8::update::GRAD_B_UPDATE,
    Update => update::UPDATE,
    LinearGradWUpdate => update::LINEAR_GRAD_W_UPDATE,
    NormSq => update::NORM_SQ,
    ClipScale => update::CLIP_SCALE,
}

impl Op {
    /// The name in text and in plans.
    pub fn name(self) -> &'static str {
        self.def().name
    }

    /// The op of this name.
    pub fn from_name(name: &str) -> Option<Op> {
        Op::ALL.iter().copied().find(|op| op.def().name == name)
    }
}
