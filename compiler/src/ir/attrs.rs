//! Attributes: the numbers that belong to an op beside its operands.

use std::fmt;

/// One attribute's value.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Attr {
    /// A whole number: a size, a count or a flag (0 or 1).
    Int(i64),
    /// A real number.
    Float(f64),
}

/// What an op's row says of an attribute: its name, and its kind with the value that holds where none is written.
#[derive(Clone, Copy, Debug)]
pub struct AttrDef {
    /// The name in text.
    pub name: &'static str,
    /// The value where none is written.
    pub default: Attr,
}

/// An int attribute of this default.
pub const fn int(name: &'static str, default: i64) -> AttrDef {
    AttrDef { name, default: Attr::Int(default) }
}

/// A float attribute of this default.
pub const fn float(name: &'static str, default: f64) -> AttrDef {
    AttrDef { name, default: Attr::Float(default) }
}

/// The attributes of one node, in the order of the op's row, defaults filled in.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Attrs(Vec<(&'static str, Attr)>);

impl Attrs {
    /// The row's attributes with `given` in place of defaults.
    ///
    /// # Panics
    /// When `given` names an attribute that the row lacks, or of another kind: a fault of the caller.
    pub fn of(defs: &[AttrDef], given: &[(&str, Attr)]) -> Attrs {
        let mut attrs = Attrs(defs.iter().map(|d| (d.name, d.default)).collect());
        for &(name, value) in given {
            assert!(attrs.set(name, value), "no attribute `{name}` of this kind in the op's row");
        }
        attrs
    }

    /// Replaces one value; false when there is no attribute of this name and kind.
    pub fn set(&mut self, name: &str, value: Attr) -> bool {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some((_, old)) => {
                *old = match (*old, value) {
                    (Attr::Int(_), Attr::Int(v)) => Attr::Int(v),
                    (Attr::Float(_), Attr::Float(v)) => Attr::Float(v),
                    (Attr::Float(_), Attr::Int(v)) => Attr::Float(v as f64),
                    (Attr::Int(_), Attr::Float(_)) => return false,
                };
                true
            }
            None => false,
        }
    }

    /// The int of this name. The row declares it, so a miss is a fault of the op's author.
    pub fn int(&self, name: &str) -> i64 {
        match self.get(name) {
            Attr::Int(v) => v,
            Attr::Float(_) => panic!("attribute `{name}` is a float"),
        }
    }

    /// The int of this name as a size; negative counts as 0.
    pub fn size(&self, name: &str) -> usize {
        usize::try_from(self.int(name)).unwrap_or(0)
    }

    /// Whether the flag of this name is set.
    pub fn flag(&self, name: &str) -> bool {
        self.int(name) != 0
    }

    /// The float of this name.
    pub fn float(&self, name: &str) -> f64 {
        match self.get(name) {
            Attr::Float(v) => v,
            Attr::Int(v) => v as f64,
        }
    }

    fn get(&self, name: &str) -> Attr {
        match self.0.iter().find(|(n, _)| *n == name) {
            Some((_, v)) => *v,
            None => panic!("attribute `{name}` is not in the op's row"),
        }
    }

    /// All attributes with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, Attr)> + '_ {
        self.0.iter().copied()
    }
}

impl fmt::Display for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attr::Int(v) => write!(f, "{v}"),
            // `{:?}` prints the shortest form that reads back to the same bits, always with a point or exponent.
            Attr::Float(v) => write!(f, "{v:?}"),
        }
    }
}

impl From<i64> for Attr {
    fn from(v: i64) -> Attr {
        Attr::Int(v)
    }
}
impl From<i32> for Attr {
    fn from(v: i32) -> Attr {
        Attr::Int(i64::from(v))
    }
}
impl From<usize> for Attr {
    fn from(v: usize) -> Attr {
        Attr::Int(v as i64)
    }
}
impl From<u32> for Attr {
    fn from(v: u32) -> Attr {
        Attr::Int(i64::from(v))
    }
}
impl From<bool> for Attr {
    fn from(v: bool) -> Attr {
        Attr::Int(i64::from(v))
    }
}
impl From<f64> for Attr {
    fn from(v: f64) -> Attr {
        Attr::Float(v)
    }
}
