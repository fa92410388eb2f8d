//! Dense products by cooperative matrices: which adapters have them, and a test of what they give.
//!
//! Only matrices of f32 that add in f32 are taken, so no factor is rounded that the plain kernel does not round.
//! Invariant: they are used on a device after a test on that device alone. No interface says in which order they add,
//! or that it is one order for all elements, and what wgpu has of them is an experiment.

use super::adapter::{Opened, fixed};
use super::memory::create;
use super::run::fill_mapped;
use crate::gpu::linear::Product;
use crate::gpu::{Factor, GpuError, Launch, Operand, Params};
use std::fmt;
use std::sync::PoisonError;
use tinyforge_plan::DType;

/// What the kernel needs of wgpu.
pub(super) const FEATURES: wgpu::Features =
    wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX.union(wgpu::Features::SUBGROUP);

/// Whether an adapter's dense products are made by cooperative matrices.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cooperative {
    /// It has none of a kind that is used, or they are left alone.
    Absent,
    /// It has them, and this is what the test of them met: the plain kernel multiplies.
    Failed(String),
    /// By matrices of 8 x 8 f32.
    F32,
}

impl fmt::Display for Cooperative {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Cooperative::Absent => write!(f, "none"),
            Cooperative::Failed(why) => write!(f, "failed self-test: {why}"),
            Cooperative::F32 => write!(f, "8x8 f32"),
        }
    }
}

/// Lanes of the subgroups that hold matrices, where an adapter has such as the kernel multiplies. Eight subgroups are a
/// workgroup, and no adapter needs to have more than 256 invocations in one.
pub(super) fn lanes(kinds: &[wgpu::CooperativeMatrixProperties], info: &wgpu::AdapterInfo) -> Option<u32> {
    let is_f32 = |kind: &wgpu::CooperativeMatrixProperties| {
        let types = [kind.ab_type, kind.cr_type];
        [kind.m_size, kind.n_size, kind.k_size] == [8; 3] && types == [wgpu::CooperativeScalarType::F32; 2]
    };
    // Metal tells no size before a pipeline is made; all of Apple's own have one.
    let is_apple = info.backend == wgpu::Backend::Metal && info.name.starts_with("Apple");
    let lanes = if is_apple { Some(32) } else { fixed((info.subgroup_min_size, info.subgroup_max_size)) };
    lanes.filter(|&lanes| lanes <= 32 && kinds.iter().any(is_f32))
}

/// Leave to use what wgpu has as an experiment.
pub(super) fn experimental() -> wgpu::ExperimentalFeatures {
    #[expect(unsafe_code, reason = "the interface asks for a word that faults in it are known")]
    // SAFETY: of what is experimental one feature is asked for. The kernel that uses it loads and stores matrices in
    // workgroup memory alone, within one array; a driver that refuses it, or gives something else, is found by `test`.
    unsafe {
        wgpu::ExperimentalFeatures::enabled()
    }
}

/// A product of the test. `whole` numbers have few enough digits that every sum is exact in whichever order; the others
/// belong to rows and columns that come again, which must give the same bits wherever they lie.
struct Case {
    product: Product,
    contents: [Vec<f32>; 4],
    c_len: usize,
    is_whole: bool,
}

/// After how many rows of A, and of B, the same ones come again.
const COME_AGAIN: [usize; 2] = [9, 11];
/// The one of those rows of A that has an infinite number.
const INFINITE: usize = 4;

/// A whole number below 4096 in absolute terms, which takes more digits than f16 or TF32 have; and a small one.
fn whole(i: usize, is_long: bool) -> f32 {
    if is_long { (i * 7919 % 8191) as f32 - 4095.0 } else { (i * 31 % 7) as f32 - 3.0 }
}

/// Step `k` of a row, with numbers from thousandths to thousands.
fn fraction(row: usize, k: usize) -> f32 {
    let scale = [0.001, 1.0, 1000.0][row % 3];
    ((row * 1009 + k * 7919) % 10_007) as f32 / 10_007.0 * scale - 0.3 * scale
}

impl Case {
    /// `x wᵀ + bias`, or `acc + dyᵀ x / 2` with rows of the result that lie apart.
    fn of_whole(size: [usize; 3], segment: usize, is_transposed: bool, rounds: bool) -> Case {
        let [m, n, k] = size;
        let by = |i, rows| {
            let operand = Operand::Arg(i);
            if is_transposed { Factor::transposed(operand, rows) } else { Factor::rows(operand, k) }
        };
        let (c_row, c_first) = if is_transposed { (n + 8, 5) } else { (n, 0) };
        let c_len = c_first + m * c_row;
        let product = Product {
            size,
            a: by(0, m),
            b: by(1, n),
            storage: DType::F32,
            bias: (!is_transposed).then_some(Operand::Arg(2)),
            acc: is_transposed.then_some(Operand::Arg(3)),
            c: Operand::Out(0),
            c_row,
            c_first,
            segment,
            alpha: if is_transposed { 0.5 } else { 1.0 },
            rounds,
        };
        let some = |len: usize, is_long| (0..len).map(|i| whole(i, is_long)).collect();
        let contents = [some(m * k, !is_transposed), some(n * k, is_transposed), some(n, true), some(c_len, true)];
        Case { product, contents, c_len, is_whole: true }
    }

    fn of_fractions(size: [usize; 3]) -> Case {
        let [m, n, k] = size;
        let mut case = Case::of_whole(size, k, false, false);
        case.product.bias = None;
        case.is_whole = false;
        let rows = |count: usize, again: usize| {
            (0..count).flat_map(move |row| (0..k).map(move |step| fraction(row % again, step))).collect::<Vec<f32>>()
        };
        let [a_again, b_again] = COME_AGAIN;
        (case.contents[0], case.contents[1]) = (rows(m, a_again), rows(n, b_again));
        for row in (INFINITE..m).step_by(a_again) {
            case.contents[0][row * k + k / 2] = f32::INFINITY;
        }
        case
    }

    /// What element `i, j` is, and the sum of its terms' absolute values.
    fn wanted(&self, i: usize, j: usize) -> (f64, f64) {
        let Product { size: [_, _, k], a, b, bias, acc, alpha, rounds, .. } = self.product;
        let factor = |of: &Factor, data: &[f32], i: usize, step: usize| {
            let x = data[of.first + i * of.row + step * of.col];
            f64::from(if rounds { half::bf16::from_f32(x).to_f32() } else { x })
        };
        let terms = (0..k).map(|s| factor(&a, &self.contents[0], i, s) * factor(&b, &self.contents[1], j, s));
        let (sum, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
        let add = bias.map_or(0.0, |_| self.contents[2][j]) + acc.map_or(0.0, |_| self.contents[3][self.place(i, j)]);
        (f64::from(alpha) * sum + f64::from(add), size)
    }

    fn place(&self, i: usize, j: usize) -> usize {
        self.product.c_first + i * self.product.c_row + j
    }

    /// What is wrong with a result whose words were all ones before.
    fn check(&self, found: &[f32]) -> Result<(), String> {
        let [m, n, _] = self.product.size;
        let told = |i, j, why: String| Err(format!("element {i}, {j} of {:?} {why}", self.product.size));
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let y = found[self.place(i, j)];
            let (wanted, size) = self.wanted(i, j);
            let first = found[self.place(i % COME_AGAIN[0], j % COME_AGAIN[1])];
            let is_near = (f64::from(y) - wanted).abs() <= if self.is_whole { 0.0 } else { 1e-5 * size };
            let is_infinite = !self.is_whole && i % COME_AGAIN[0] == INFINITE;
            if is_infinite && y.is_finite() || !is_infinite && !is_near {
                return told(i, j, format!("is {y}, must be {wanted}"));
            }
            if !self.is_whole && !y.is_nan() && y.to_bits() != first.to_bits() {
                return told(i, j, format!("is {y}, and {first} elsewhere"));
            }
        }
        let mut is_own = vec![false; self.c_len];
        (0..m).for_each(|i| is_own[self.place(i, 0)..self.place(i, n)].fill(true));
        match found.iter().zip(&is_own).position(|(y, is_own)| !is_own && y.to_bits() != u32::MAX) {
            Some(at) => Err(format!("number {at} of {:?} was written to", self.product.size)),
            None => Ok(()),
        }
    }
}

/// Edges of tiles, panels, chunks and segments; both ways that factors lie; factors rounded; and sums that round.
fn cases() -> [Case; 4] {
    [
        Case::of_whole([70, 75, 83], 83, false, false),
        Case::of_whole([67, 72, 530], 520, true, false),
        Case::of_whole([33, 130, 40], 40, false, true),
        Case::of_fractions([66, 75, 120]),
    ]
}

/// Multiplies on an open adapter, and says what is wrong with the results.
pub(super) fn test(name: &str, open: &Opened) -> Result<(), String> {
    cases().iter().try_for_each(|case| case.check(&run(name, open, case).map_err(|e| e.to_string())?))
}

/// Runs a product; what it does not write stays all ones.
fn run(name: &str, open: &Opened, case: &Case) -> Result<Vec<f32>, GpuError> {
    let Opened { device, queue, complaint, pipelines, .. } = open;
    let lost = |why: String| GpuError::Lost { device: name.to_string(), why };
    let filled = |bytes: &[u8], usage| {
        let buffer = create(device, name, ("operands of a test", bytes.len() as u64), usage, true)?;
        fill_mapped(&buffer, 0, bytes).map_err(lost)?;
        buffer.unmap();
        Ok(buffer)
    };
    let Launch { kernel, operands, params, grid, .. } = case.product.launch();
    let storage = wgpu::BufferUsages::STORAGE;
    let args = case.contents.iter().map(|x| filled(bytemuck::cast_slice(x), storage));
    let args = args.collect::<Result<Vec<_>, GpuError>>()?;
    let params: [u32; Params::WORDS] = params.of_step(0);
    let params = filled(bytemuck::cast_slice(&params), wgpu::BufferUsages::UNIFORM)?;
    let status = filled(&[0; 256], storage)?;
    let bytes = 4 * case.c_len as u64;
    let c = filled(&vec![0xff; bytes as usize], storage | wgpu::BufferUsages::COPY_SRC)?;
    let down_usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
    let down = create(device, name, ("results of a test", bytes), down_usage, false)?;
    let mut pipelines = pipelines.lock().unwrap_or_else(PoisonError::into_inner);
    let (pipeline, layout) = pipelines.get(kernel, operands.len(), complaint)?;
    let bound = operands.iter().map(|operand| if let Operand::Arg(i) = operand { &args[*i] } else { &c });
    let entries: Vec<_> = [&params, &status]
        .into_iter()
        .chain(bound)
        .enumerate()
        .map(|(i, b)| wgpu::BindGroupEntry { binding: i as u32, resource: b.as_entire_binding() })
        .collect();
    let group =
        device.create_bind_group(&wgpu::BindGroupDescriptor { label: None, layout: &layout, entries: &entries });
    let mut encoder = device.create_command_encoder(&wgpu::CommandEncoderDescriptor::default());
    let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor::default());
    pass.set_pipeline(&pipeline);
    pass.set_bind_group(0, &group, &[]);
    pass.dispatch_workgroups(grid[0], grid[1], grid[2]);
    drop(pass);
    encoder.copy_buffer_to_buffer(&c, 0, &down, 0, bytes);
    queue.submit([encoder.finish()]);
    let on_error = complaint.clone();
    down.map_async(wgpu::MapMode::Read, .., move |mapped| {
        mapped.unwrap_or_else(|e| on_error.set(e.to_string()));
    });
    device.poll(wgpu::PollType::wait_indefinitely()).map_err(|e| lost(e.to_string()))?;
    complaint.check(name)?;
    let view = down.get_mapped_range(..).map_err(|e| lost(e.to_string()))?;
    Ok(bytemuck::pod_collect_to_vec(&view))
}

#[cfg(test)]
mod tests {
    use super::super::pipelines::{Pipelines, wgsl_cooperative};
    use super::super::{Adapter, default_adapter};
    use super::{Case, Opened, cases, lanes, run, test};
    use std::borrow::Cow;
    use std::sync::Mutex;
    use tinyforge_plan::DType;
    use wgpu::{CooperativeMatrixProperties, CooperativeScalarType};

    /// Matrices spread over the invocations of a subgroup: factors are read where they lie, sums are held, lane by lane
    /// in turn, and added to in the order of the plain kernel.
    const SPREAD: &str = "
        var<private> lane: u32;
        fn load_rows(at: u32, pitch: u32) -> vec3<u32> { return vec3<u32>(at, pitch, 1u); }
        fn load_columns(at: u32, pitch: u32) -> vec3<u32> { return vec3<u32>(at, 1u, pitch); }
        fn load_sums(at: u32, pitch: u32) -> array<f32, 8> {
            var sums: array<f32, 8>;
            for (var t = 0u; t < 64u / LANES; t++) { sums[t] = panels[at + held(t).x * pitch + held(t).y]; }
            return sums;
        }
        fn held(t: u32) -> vec2<u32> { return vec2<u32>((lane + LANES * t) / 8u, (lane + LANES * t) % 8u); }
        fn multiply_add(a: vec3<u32>, b: vec3<u32>, c: array<f32, 8>) -> array<f32, 8> {
            var sums = c;
            for (var t = 0u; t < 64u / LANES; t++) {
                var sum = sums[t];
                for (var k = 0u; k < 8u; k++) {
                    let x = panels[a.x + held(t).x * a.y + k * a.z];
                    sum = fma(x, panels[b.x + k * b.y + held(t).y * b.z], sum);
                }
                sums[t] = sum;
            }
            return sums;
        }
        fn store_rows(c: array<f32, 8>, at: u32, pitch: u32) {
            var sums = c;
            for (var t = 0u; t < 64u / LANES; t++) { panels[at + held(t).x * pitch + held(t).y] = sums[t]; }
        }";

    /// The kernel's text with each word about matrices put in words that every adapter knows.
    fn in_plain_words() -> String {
        let words = [
            ("enable wgpu_cooperative_matrix;", SPREAD),
            ("coopLoad<coop_mat8x8<f32, A>>(&panels[", "load_columns("),
            ("coopLoadT<coop_mat8x8<f32, B>>(&panels[", "load_rows("),
            ("coopLoadT<coop_mat8x8<f32, C>>(&panels[", "load_sums("),
            ("coopMultiplyAdd(", "multiply_add("),
            ("coopStoreT(", "store_rows("),
            (", &panels[", ", "),
            ("], PITCH)", ", PITCH)"),
            ("], TILE)", ", TILE)"),
            ("], 8u)", ", 8u)"),
            ("    @builtin(subgroup_id) subgroup: u32,\n", ""),
            ("let down = subgroup", "lane = l % LANES; let subgroup = l / LANES; let down = subgroup"),
        ];
        let text = wgsl_cooperative().expect("linear is a family");
        let text = words.iter().fold(text, |text, (word, plain)| {
            assert!(text.contains(word), "the text has no `{word}`");
            text.replace(word, plain)
        });
        assert!(!text.contains("coop_mat") && !text.contains("subgroup_id"), "{text}");
        text
    }

    /// The adapter, open, with the dense product of the shader's text, or of the text above with so many lanes.
    fn opened(adapter: &Adapter, lanes: Option<u32>) -> Opened {
        let mut open = adapter.open_anew(&["cooperative matrices"]).expect("it opens");
        let mut pipelines = Pipelines::new(&open.device, ("", ""), [None, lanes]);
        if lanes.is_some() {
            let source = wgpu::ShaderSource::Wgsl(Cow::Owned(in_plain_words()));
            let module = open.device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
            pipelines.modules.insert("linear_cooperative", module);
        }
        open.pipelines = Mutex::new(pipelines);
        open
    }

    /// Where there must be an adapter (`TINYFORGE_WGPU=require`) and is none, this fails.
    fn adapter() -> Option<&'static Adapter> {
        let asked = std::env::var("TINYFORGE_WGPU").unwrap_or_default();
        let found = default_adapter().ok().filter(|_| asked != "skip");
        assert!(found.is_some() || asked != "require", "there is no adapter");
        found
    }

    /// Shapes around edges of matrices, panels, tiles and chunks, both ways that factors lie, rows that are few.
    fn products() -> Vec<Case> {
        let sizes = [[1, 1, 1], [7, 9, 17], [63, 65, 16], [65, 1, 511], [3, 129, 513], [40, 70, 1030]];
        let ways = [(false, false), (true, false), (false, true), (true, true)];
        let segments = |k: usize| [k, k.div_ceil(3)];
        let of_size = |size: [usize; 3]| {
            let way = move |segment| ways.map(|(transposed, rounds)| Case::of_whole(size, segment, transposed, rounds));
            segments(size[2]).into_iter().flat_map(way)
        };
        let mut all: Vec<Case> = sizes.into_iter().flat_map(of_size).collect();
        all.extend([[9, 11, 5], [33, 70, 90], [66, 75, 600]].map(Case::of_fractions));
        all
    }

    /// Everything but the matrices: panels, edges, segments, and what a result is added to.
    #[test]
    fn in_plain_words_the_kernel_gives_the_plain_ones_bytes() {
        let Some(adapter) = adapter() else { return };
        let plain = opened(adapter, None);
        assert_eq!(test("plain", &plain), Ok(()));
        let bits = |open: &Opened, case: &Case| {
            let found = run("it", open, case).expect("runs");
            found.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect::<Vec<u32>>()
        };
        let mut count = 0;
        for lanes in [8, 32] {
            let open = opened(adapter, Some(lanes));
            assert_eq!(test("in plain words", &open), Ok(()));
            for mut case in products() {
                for storage in [DType::F32, DType::BF16] {
                    case.product.storage = storage;
                    let (size, segment) = (case.product.size, case.product.segment);
                    assert!(bits(&plain, &case) == bits(&open, &case), "{lanes} lanes, {size:?} by {segment}");
                    count += 1;
                }
            }
        }
        println!("{count} products as the plain kernel makes them");
    }

    /// A kernel that is not right on an adapter is not taken there.
    #[test]
    fn a_wrong_kernel_is_found() {
        let Some(adapter) = adapter() else { return };
        for (right, wrong) in
            [("load_columns(left,", "load_rows(left,"), ("fma(p.alpha", "fma(1.0"), ("end == p.k)", "false)")]
        {
            let open = opened(adapter, Some(8));
            let source = wgpu::ShaderSource::Wgsl(Cow::Owned(in_plain_words().replace(right, wrong)));
            let module = open.device.create_shader_module(wgpu::ShaderModuleDescriptor { label: None, source });
            open.pipelines.lock().expect("not poisoned").modules.insert("linear_cooperative", module);
            assert!(test("wrong", &open).is_err(), "{right}");
        }
    }

    /// What a device gives that adds in f32 in some order, with factors changed by it.
    fn made(case: &Case, change: impl Fn(f32) -> f32) -> Vec<f32> {
        let [m, n, k] = case.product.size;
        let (a, b) = (case.product.a, case.product.b);
        let rounded = |x: f32| if case.product.rounds { half::bf16::from_f32(x).to_f32() } else { x };
        let mut c = vec![f32::from_bits(u32::MAX); case.c_len];
        for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let factors = |s: usize| {
                [case.contents[0][i * a.row + s * a.col], case.contents[1][j * b.row + s * b.col]].map(rounded)
            };
            let sum = (0..k).rev().map(factors).fold(0.0, |sum, [x, y]| change(x).mul_add(change(y), sum));
            let bias = if case.product.bias.is_some() { case.contents[2][j] } else { 0.0 };
            let acc = if case.product.acc.is_some() { case.contents[3][case.place(i, j)] } else { 0.0 };
            c[case.place(i, j)] = case.product.alpha.mul_add(sum, bias + acc);
        }
        c
    }

    #[test]
    fn right_products_pass_and_wrong_ones_do_not() {
        for case in cases() {
            let right = made(&case, |x| x);
            assert_eq!(case.check(&right), Ok(()));
            let [m, n, _] = case.product.size;
            for (i, j) in [(0, 0), (m - 1, n - 1), (64.min(m - 1), 3)] {
                let mut wrong = right.clone();
                wrong[case.place(i, j)] *= 1.01;
                assert!(case.check(&wrong).is_err(), "element {i}, {j} of {:?}", case.product.size);
            }
        }
        let [plain, transposed, _, fractions] = cases();
        // TF32 keeps eleven digits, as f16 does.
        let short = |x: f32| f32::from_bits((x.to_bits() + 0x1000) & !0x1fff);
        for case in [&plain, &transposed] {
            assert!(case.check(&made(case, short)).is_err(), "{:?}", case.product.size);
        }
        let mut wide = made(&transposed, |x| x);
        wide[2] = 0.0;
        assert_eq!(transposed.check(&wide), Err(format!("number 2 of {:?} was written to", transposed.product.size)));
        // A last bit that depends on where a row lies.
        let mut moved = made(&fractions, |x| x);
        let at = fractions.place(64, 3);
        moved[at] = f32::from_bits(moved[at].to_bits() ^ 1);
        assert!(fractions.check(&moved).is_err_and(|why| why.contains("elsewhere")));
    }

    #[test]
    fn only_matrices_of_f32_are_taken() {
        let kind = |size, ab_type, cr_type| CooperativeMatrixProperties {
            m_size: size,
            n_size: size,
            k_size: size,
            ab_type,
            cr_type,
            saturating_accumulation: false,
        };
        let (f32, f16) = (CooperativeScalarType::F32, CooperativeScalarType::F16);
        let of = |kinds: &[_], backend, name: &str, (least, most)| {
            let info = wgpu::AdapterInfo::new(wgpu::DeviceType::IntegratedGpu, backend);
            let name = name.to_string();
            lanes(kinds, &wgpu::AdapterInfo { name, subgroup_min_size: least, subgroup_max_size: most, ..info })
        };
        let (vulkan, metal) = (wgpu::Backend::Vulkan, wgpu::Backend::Metal);
        let long = [kind(16, f16, f32), kind(8, f16, f32), kind(8, f16, f16), kind(16, f32, f32)];
        let short = [kind(16, f16, f32), kind(8, f32, f32)];
        assert_eq!([&long[..], &[]].map(|kinds| of(kinds, vulkan, "it", (32, 32))), [None; 2]);
        let sizes = [(8, 8), (32, 32), (64, 64), (8, 32)];
        assert_eq!(sizes.map(|size| of(&short, vulkan, "it", size)), [Some(8), Some(32), None, None]);
        assert_eq!(["Apple M1", "AMD Radeon"].map(|name| of(&short, metal, name, (4, 64))), [Some(32), None]);
        assert_eq!(of(&long, metal, "Apple M1", (4, 64)), None);
    }
}
