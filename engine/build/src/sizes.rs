//! Sizes as people write them: `256KiB`, `2GiB`.

/// Bytes of a text such as `512`, `256KiB`, `2GiB`, `1.5GB`.
///
/// # Errors
/// The text is no size.
pub fn parse(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1048576.0,
        "g" | "gib" => 1073741824.0,
        "t" | "tib" => 1099511627776.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        _ => return Err(format!("`{text}` is no size: write 256KiB, 64MiB or 2GiB")),
    };
    match number.parse::<f64>() {
        Ok(n) if n > 0.0 && n * factor < 9e18 => Ok((n * factor) as u64),
        _ => Err(format!("`{text}` is no size: write 256KiB, 64MiB or 2GiB")),
    }
}

/// A size for people: `213.4 MiB`.
pub fn show(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_shows() {
        assert_eq!(parse("256KiB"), Ok(262144));
        assert_eq!(parse("1.5 GiB"), Ok(1610612736));
        assert_eq!(parse("2gb"), Ok(2_000_000_000));
        assert!(parse("-1MiB").is_err() && parse("lots").is_err() && parse("").is_err() && parse("0").is_err());
        assert_eq!(show(262144), "256.0 KiB");
    }
}
