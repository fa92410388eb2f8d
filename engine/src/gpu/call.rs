//! A step as rows see it, and the launches that they make of it.

use tinyforge_plan::{DType, Number, Shape, Step, Tensor};

/// Operands and results of a step, with its attributes; places only where they are known.
pub struct Call<'a> {
    args: Vec<Seen<'a>>,
    outs: Vec<Seen<'a>>,
    attrs: &'a [(String, Number)],
}

/// A tensor of a call.
#[derive(Clone, Copy)]
struct Seen<'a> {
    dtype: DType,
    dims: &'a [u32],
    /// Its first byte; none while the plan is being made.
    offset: Option<u64>,
}

impl<'a> Seen<'a> {
    fn of(t: &'a Tensor) -> Seen<'a> {
        Seen { dtype: t.dtype, dims: &t.shape, offset: Some(t.offset) }
    }

    fn cols(&self) -> usize {
        self.dims.last().map_or(1, |&d| d as usize)
    }

    fn rows(&self) -> usize {
        self.dims.iter().rev().skip(1).map(|&d| d as usize).product()
    }

    fn elems(&self) -> usize {
        self.rows() * self.cols()
    }

    fn bytes(&self) -> u64 {
        (self.elems() as u64).div_ceil(self.dtype.block_elems()) * self.dtype.block_bytes()
    }
}

impl<'a> Call<'a> {
    pub(super) fn of_step(step: &'a Step) -> Call<'a> {
        let seen = |list: &'a [Tensor]| list.iter().map(Seen::of).collect();
        Call { args: seen(&step.args), outs: seen(&step.outs), attrs: &step.attrs }
    }

    pub(super) fn of_query(args: &[Shape<'a>], outs: &[Shape<'a>], attrs: &'a [(String, Number)]) -> Call<'a> {
        let seen = |list: &[Shape<'a>]| {
            list.iter().map(|s| Seen { dtype: s.dtype, dims: s.dims, offset: None }).collect::<Vec<_>>()
        };
        Call { args: seen(args), outs: seen(outs), attrs }
    }

    /// The int attribute of this name, 0 where there is none.
    pub fn int(&self, name: &str) -> i64 {
        match self.attrs.iter().find(|(n, _)| n == name) {
            Some((_, Number::Int(v))) => *v,
            _ => 0,
        }
    }

    /// The int attribute of this name as a size.
    pub fn size(&self, name: &str) -> usize {
        usize::try_from(self.int(name)).unwrap_or(0)
    }

    /// The float attribute of this name, 0 where there is none.
    pub fn float(&self, name: &str) -> f32 {
        match self.attrs.iter().find(|(n, _)| n == name) {
            Some((_, Number::Float(v))) => *v as f32,
            Some((_, Number::Int(v))) => *v as f32,
            None => 0.0,
        }
    }

    /// How many operands there are.
    pub fn args(&self) -> usize {
        self.args.len()
    }

    /// How many results there are.
    pub fn outs(&self) -> usize {
        self.outs.len()
    }

    /// The last dimension of operand `i`.
    pub fn cols(&self, i: usize) -> usize {
        self.args[i].cols()
    }

    /// The product of the other dimensions of operand `i`.
    pub fn rows(&self, i: usize) -> usize {
        self.args[i].rows()
    }

    /// The elements of operand `i`.
    pub fn elems(&self, i: usize) -> usize {
        self.args[i].elems()
    }

    /// The last dimension of result `i`.
    pub fn out_cols(&self, i: usize) -> usize {
        self.outs[i].cols()
    }

    /// The elements of result `i`.
    pub fn out_elems(&self, i: usize) -> usize {
        self.outs[i].elems()
    }

    /// The lengths of operand `i`'s dimensions.
    pub fn dims(&self, i: usize) -> &'a [u32] {
        self.args[i].dims
    }

    /// The lengths of result `i`'s dimensions.
    pub fn out_dims(&self, i: usize) -> &'a [u32] {
        self.outs[i].dims
    }

    /// How operand `i` is stored.
    pub fn dtype(&self, i: usize) -> DType {
        self.args[i].dtype
    }

    /// Whole words that operand `i` takes.
    pub fn words(&self, i: usize) -> usize {
        self.args[i].bytes().div_ceil(4) as usize
    }

    /// Whether result `o` is known to lie where operand `i` lies.
    pub fn is_in_place(&self, i: usize, o: usize) -> bool {
        self.outs[o].offset.is_some() && self.args[i].offset == self.outs[o].offset
    }

    /// Whether operands `i` and `j` are known to lie at one place.
    pub fn is_same(&self, i: usize, j: usize) -> bool {
        self.args[i].offset.is_some() && self.args[i].offset == self.args[j].offset
    }

    /// The elements of each operand and result, where all are as many f32 and there are no attributes.
    pub(super) fn elems_of_all(&self) -> Option<usize> {
        let mut all = self.args.iter().chain(&self.outs);
        let len = all.clone().next()?.elems();
        (all.all(|t| t.dtype == DType::F32 && t.elems() == len) && self.attrs.is_empty()).then_some(len)
    }

    /// The bytes of the largest operand or result.
    pub(super) fn largest_bytes(&self) -> u64 {
        self.args.iter().chain(&self.outs).map(Seen::bytes).max().unwrap_or(0)
    }
}

/// Which kernel a launch runs: a function of a file, for one storage type of the operand that comes in several.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Kernel {
    /// The file without its ending: the op family.
    pub stem: &'static str,
    /// The function.
    pub entry: &'static str,
    /// How the operand that comes in several storage types is stored; f32 where there is none.
    pub storage: DType,
}

impl Kernel {
    /// A kernel all of whose operands have one storage type.
    pub const fn plain(stem: &'static str, entry: &'static str) -> Kernel {
        Kernel { stem, entry, storage: DType::F32 }
    }
}

/// Constants that a kernel reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Tables {
    /// 256 f32: what the codes of signed 8-bit states stand for, and 256 for unsigned ones.
    Codes,
}

/// What a launch binds at one place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// An operand of the step.
    Arg(usize),
    /// A result of the step.
    Out(usize),
    /// The step's scratch: its first byte, a multiple of 256, and how many.
    Scratch(u64, u64),
    /// Constants.
    Table(Tables),
}

/// Words that a launch hands to its kernel, in the order of the family's struct. The first is the number of the step,
/// which the device fills in; floats travel as their bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Params {
    words: [u32; Params::WORDS],
    len: usize,
}

impl Params {
    /// Words of the longest family's struct.
    pub const WORDS: usize = 32;

    /// No words but the step's number.
    pub const fn new() -> Params {
        Params { words: [0; Params::WORDS], len: 1 }
    }

    /// One more word.
    ///
    /// # Panics
    /// There is no room for it.
    #[must_use]
    pub fn word(mut self, word: u32) -> Params {
        self.words[self.len] = word;
        self.len += 1;
        self
    }

    /// One more size.
    ///
    /// # Panics
    /// It needs more than a word: no operand is so long.
    #[must_use]
    pub fn size(self, size: usize) -> Params {
        self.word(u32::try_from(size).expect("an operand has fewer elements"))
    }

    /// More sizes.
    #[must_use]
    pub fn sizes(self, sizes: &[usize]) -> Params {
        sizes.iter().fold(self, |p, &s| p.size(s))
    }

    /// One more float.
    #[must_use]
    pub fn float(self, x: f32) -> Params {
        self.word(x.to_bits())
    }

    /// The words for step number `step`.
    pub fn of_step(&self, step: u32) -> [u32; Params::WORDS] {
        let mut words = self.words;
        words[0] = step;
        words
    }
}

impl Default for Params {
    fn default() -> Params {
        Params::new()
    }
}

/// One launch of a kernel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Launch {
    /// What runs.
    pub kernel: Kernel,
    /// What it runs on.
    pub operands: Vec<Operand>,
    /// Its numbers.
    pub params: Params,
    /// Workgroups along each axis, at most [`GRID_MAX`].
    pub grid: [u32; 3],
    /// The same in matrix units, where factors are rounded to bf16 and there is a kernel for that.
    pub in_units: Option<InUnits>,
}

/// What a device with matrix units, which multiply bf16 factors, runs in a launch's place: another kernel of the same
/// file on the same operands and numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InUnits {
    /// The function.
    pub entry: &'static str,
    /// Workgroups along each axis.
    pub grid: [u32; 3],
}

impl Launch {
    /// The kernel and its workgroups, on a device that has matrix units or none.
    pub fn on(&self, has_units: bool) -> (Kernel, [u32; 3]) {
        match self.in_units.filter(|_| has_units) {
            Some(InUnits { entry, grid }) => (Kernel { entry, ..self.kernel }, grid),
            None => (self.kernel, self.grid),
        }
    }
}

/// A factor: elements between its neighbours along rows (of the left one) or columns (of the right one) of the
/// result, and along `k`; and its first element.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Factor {
    /// Where it lies.
    pub operand: Operand,
    /// Elements between neighbours along the result.
    pub row: usize,
    /// Elements between neighbours along `k`.
    pub col: usize,
    /// Its first element.
    pub first: usize,
}

impl Factor {
    /// A matrix of so many columns, row by row along `k`.
    pub fn rows(operand: Operand, cols: usize) -> Factor {
        Factor { operand, row: cols, col: 1, first: 0 }
    }

    /// The transpose of a matrix of so many columns.
    pub fn transposed(operand: Operand, cols: usize) -> Factor {
        Factor { operand, row: 1, col: cols, first: 0 }
    }

    /// The same from another element on.
    #[must_use]
    pub fn from(self, first: usize) -> Factor {
        Factor { first, ..self }
    }
}

/// A product for a library of dense ones: `D = alpha A B' (+ C) (+ bias)`, `m` by `n` with sums over `k`.
#[derive(Clone, PartialEq, Debug)]
pub struct Dense {
    /// `m`, `n` and `k`.
    pub size: [usize; 3],
    /// A and B, of which one stride each is 1.
    pub factors: [Factor; 2],
    /// How both are stored: f32 or bf16. Everything else is f32.
    pub dtype: DType,
    /// A number a column of the result.
    pub bias: Option<Operand>,
    /// C, laid out as the result.
    pub acc: Option<Operand>,
    /// D.
    pub to: Operand,
    /// Elements between rows of the result, and its first one.
    pub to_row: usize,
    /// The result's first element.
    pub to_first: usize,
    /// What products are multiplied with.
    pub alpha: f32,
    /// What the places of A, B and D are multiples of, in bytes, whichever packed row the product is of: an algorithm
    /// is chosen by it.
    pub aligned: [usize; 3],
}

/// A part of what a device with a library of dense products does for a step.
#[derive(Clone, PartialEq, Debug)]
pub enum Part {
    /// A kernel.
    Launch(Launch),
    /// A product by the library.
    Dense(Dense),
}

/// What a device with a library of dense products does for a step, and the scratch of that.
#[derive(Clone, PartialEq, Debug)]
pub struct Parts {
    /// In order: each sees what those before it wrote.
    pub list: Vec<Part>,
    /// Bytes of scratch.
    pub scratch_bytes: u64,
}

/// The launches of a step, in their order, and the scratch that they share.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Work {
    /// In order: each sees what those before it wrote.
    pub launches: Vec<Launch>,
    /// Bytes of scratch.
    pub scratch_bytes: u64,
    /// The same by a library, where the step is dense products of storage types that one knows.
    pub by_library: Option<Parts>,
}

impl Work {
    /// One launch without scratch.
    pub fn one(launch: Launch) -> Work {
        Work::of(vec![launch], 0)
    }

    /// Launches with their scratch, and no library.
    pub fn of(launches: Vec<Launch>, scratch_bytes: u64) -> Work {
        Work { launches, scratch_bytes, by_library: None }
    }
}

/// The most workgroups along one axis.
pub const GRID_MAX: usize = 65_535;

/// Invocations of a workgroup of an elementwise kernel.
pub const GROUP: usize = 256;

/// So many workgroups, along two axes where one is too short for them.
pub fn grid_of(groups: usize) -> [u32; 3] {
    let groups = groups.max(1);
    let high = groups.div_ceil(GRID_MAX);
    [groups.div_ceil(high) as u32, high as u32, 1]
}
