//! A dense product takes its memory from scratch and nowhere else.
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use tinyforge_kernels::f32::dense::{Compute, Gemm, Mat, MatData, gemm_on, gemm_scratch_bytes, kernel_sets};
use tinyforge_kernels::par::Par;
use tinyforge_plan::DType;

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is the system allocator's.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: forwarded contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: forwarded contract.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// The only test of its file: another one beside it would be counted too.
#[test]
fn products_allocate_nothing() {
    let (m, n, k) = (70, 300, 1120);
    let (a, b) = (vec![0.5; m * k], vec![0.25; n * k]);
    let blocks = vec![0x11; DType::Q8_0.bytes_of((n * k) as u64).expect("whole blocks") as usize];
    for (threads, compute) in [(1, Compute::F32), (1, Compute::BF16), (2, Compute::F32), (2, Compute::BF16)] {
        let par = Par::new(threads, 1 << 20).expect("threads");
        let mut c = vec![0.0; m * n];
        let mut scratch = vec![0; gemm_scratch_bytes(m, n, k, compute, threads)];
        for (rows, data) in [(1, MatData::F32(&b)), (m, MatData::F32(&b)), (m, MatData::Blocks(DType::Q8_0, &blocks))] {
            let g = Gemm {
                a: Mat { data: MatData::F32(&a), rows, cols: k, stride: k },
                a_trans: false,
                b: Mat { data, rows: n, cols: k, stride: k },
                b_trans: true,
                compute,
                alpha: 1.0,
                bias: None,
                accumulate: false,
                k_segment: None,
            };
            for set in kernel_sets(compute) {
                par.enter(|| {
                    // On a busy machine a thread may sleep through many of these, and start what it needs once it
                    // wakes: what a product itself takes it takes every time.
                    let fewest = (0..32).map(|_| {
                        let before = ALLOCATIONS.load(Ordering::Relaxed);
                        gemm_on(set, &par, &g, &mut c, n, &mut scratch);
                        ALLOCATIONS.load(Ordering::Relaxed) - before
                    });
                    assert_eq!(fewest.min(), Some(0), "{} {threads} {rows}", set.name);
                });
            }
        }
    }
}
