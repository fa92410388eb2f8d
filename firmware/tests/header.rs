//! The C header says what the code does.

use tinyforge_firmware::Fault;

const HEADER: &str = include_str!("../include/tinyforge.h");
const CODE: &str = include_str!("../src/abi.rs");
const FAULTS: &str = include_str!("../src/fault.rs");

/// Text without comments.
fn bare(text: &str) -> String {
    let mut bare = String::new();
    for part in text.split("/*") {
        bare += part.split_once("*/").map_or(part, |(_, rest)| rest);
    }
    bare
}

#[test]
fn faults_have_the_same_numbers() {
    let bare = bare(HEADER);
    let listed = bare.split("enum tinyforge_fault {").nth(1).and_then(|rest| rest.split('}').next()).expect("an enum");
    let mut listed: Vec<(String, u8)> = listed
        .split(',')
        .filter_map(|row| row.split_once('='))
        .map(|(name, n)| (name.trim().replace("TINYFORGE_", "").replace('_', ""), n.trim().parse().expect("a number")))
        .collect();
    assert_eq!(listed.remove(0), ("OK".to_string(), 0));
    let rows = FAULTS.lines().filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = "));
    let wanted: Vec<(String, u8)> = rows.map(|(name, n)| (name.to_uppercase(), n.parse().expect("a number"))).collect();
    assert_eq!(listed, wanted);
    assert_eq!(Fault::NotStarted.code() as usize, wanted.len());
}

#[test]
fn functions_and_constants_are_the_same() {
    let bare = bare(HEADER);
    let names = |text: &str, after: &[&str]| {
        let mut names: Vec<String> = Vec::new();
        for after in after {
            let rests = text.split(after).skip(1);
            names.extend(rests.map(|rest| rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()));
        }
        names.retain(|name| name.starts_with("tinyforge_"));
        names.sort();
        names
    };
    let declared = names(&bare, &["\nuint8_t ", "\nint8_t *", "extern const uint32_t "]);
    assert_eq!(declared, names(CODE, &["extern \"C\" fn ", "static "]));
    assert_eq!(declared.len(), 15);
}
