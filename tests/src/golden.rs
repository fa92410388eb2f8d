//! Expected texts that stand in files, and what to say when they differ.

use std::fmt::Write;

/// Whether expectations are to be rewritten rather than compared.
pub fn blessing() -> bool {
    std::env::var_os("BLESS").is_some_and(|v| v == "1")
}

/// What a failing comparison says besides the difference.
pub const HOW_TO_BLESS: &str = "if the new text is right, rewrite it with `BLESS=1 cargo test -p tinyforge-tests`";

/// Lines of both texts with `-` before those only `wanted` has and `+` before those only `found` has; lines that
/// agree are left out but for one around each difference.
pub fn difference(wanted: &str, found: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (wanted.lines().collect(), found.lines().collect());
    // longest[i][j]: length of the longest common subsequence of a[i..] and b[j..].
    let mut longest = vec![vec![0u32; b.len() + 1]; a.len() + 1];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            longest[i][j] =
                if a[i] == b[j] { longest[i + 1][j + 1] + 1 } else { longest[i + 1][j].max(longest[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut lines) = (0, 0, Vec::new());
    while i < a.len() || j < b.len() {
        if i < a.len() && j < b.len() && a[i] == b[j] {
            lines.push((' ', a[i]));
            (i, j) = (i + 1, j + 1);
        } else if j >= b.len() || (i < a.len() && longest[i + 1][j] >= longest[i][j + 1]) {
            lines.push(('-', a[i]));
            i += 1;
        } else {
            lines.push(('+', b[j]));
            j += 1;
        }
    }
    let differs = |k: usize| lines.get(k).is_some_and(|l| l.0 != ' ');
    let mut out = String::new();
    for (k, (sign, line)) in lines.iter().enumerate() {
        if differs(k) || differs(k + 1) || (k > 0 && differs(k - 1)) {
            let _ = writeln!(out, "{sign} {line}");
        }
    }
    out
}
