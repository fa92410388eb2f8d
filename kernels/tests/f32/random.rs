use tinyforge_kernels::random::{Stream, philox};

/// The known answers published with the generator.
#[test]
fn philox_gives_the_known_answers() {
    let cases = [
        ([0, 0, 0, 0], [0, 0], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(philox(key, counter.map(|word| [word])).map(|word| word[0]), expected);
    }
}

#[test]
fn many_blocks_are_single_blocks() {
    let stream = Stream { seed: 0x1234_5678_9abc_def0, step: 7, tensor: 3 };
    let first = u64::from(u32::MAX) - 3;
    let blocks = stream.blocks::<8>(first);
    #[expect(clippy::needless_range_loop, reason = "block i of several arrays")]
    for i in 0..8 {
        assert_eq!(stream.block(first + i as u64), [0, 1, 2, 3].map(|word| blocks[word][i]));
    }
    let words = stream.block(32 + 2);
    let bits = [0, 32, 64, 224].map(|part| stream.bits16(256 + part + 2));
    assert_eq!(bits, [words[0], words[0] >> 16, words[1], words[3] >> 16].map(|word| word as u16));
}

/// Chi-squared over 256 bins; the bound is six standard deviations above the mean.
#[test]
fn bits_are_uniform() {
    let stream = Stream { seed: 42, step: 1, tensor: 9 };
    let total = 1 << 16;
    for shift in [0, 8] {
        let mut bins = [0u32; 256];
        (0..total).for_each(|i| bins[usize::from(stream.bits16(i) >> shift & 0xff)] += 1);
        let expected = total as f64 / 256.0;
        let chi: f64 = bins.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
        assert!(chi < 255.0 + 6.0 * (2.0f64 * 255.0).sqrt() && chi > 255.0 - 6.0 * (2.0f64 * 255.0).sqrt(), "{chi}");
    }
    let mean = (0..total).map(|i| f64::from(stream.uniform(i))).sum::<f64>() / total as f64;
    assert!((mean - 0.5).abs() < 0.006, "{mean}");
}
