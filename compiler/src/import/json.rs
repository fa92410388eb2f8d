//! Small JSON objects from untrusted files, read key by key.

use serde_json::{Map, Value};

use super::config_error::{ConfigError, Findings};

/// Longest configuration that is read, in bytes.
pub(super) const CONFIG_BYTES_MAX: usize = 16 << 20;

/// Parses a JSON object within [`CONFIG_BYTES_MAX`].
pub(crate) fn json_object(bytes: &[u8]) -> Result<Map<String, Value>, ConfigError> {
    if bytes.len() > CONFIG_BYTES_MAX {
        let detail = format!("it has {} bytes, the limit is {CONFIG_BYTES_MAX}", bytes.len());
        return Err(ConfigError::Json { detail });
    }
    serde_json::from_slice(bytes).map_err(|error| ConfigError::Json { detail: error.to_string() })
}

/// A JSON object whose faults are collected; accessors return a stand-in after noting one.
pub(crate) struct Object<'a> {
    pub(crate) map: &'a Map<String, Value>,
    /// Put before keys in findings.
    pub(crate) prefix: String,
    pub(crate) findings: Findings,
}

impl<'a> Object<'a> {
    /// Whether the key is there, null or not.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    /// The value, unless absent or null.
    pub(crate) fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn wrong(&mut self, key: &str, found: impl std::fmt::Display, need: impl std::fmt::Display) {
        self.findings.wrong(&format!("{}{key}", self.prefix), found, need);
    }

    pub(crate) fn unsupported(&mut self, key: &str, found: impl std::fmt::Display, help: impl std::fmt::Display) {
        self.findings.unsupported(&format!("{}{key}", self.prefix), found, help);
    }

    /// Notes that a key which must be absent or null is there.
    pub(crate) fn refuse(&mut self, key: &str, help: &str) {
        if let Some(value) = self.value(key) {
            self.unsupported(key, describe(value), help);
        }
    }

    pub(crate) fn read<T>(&mut self, key: &str, need: &str, read: impl Fn(&'a Value) -> Option<T>) -> Option<T> {
        let value = self.value(key)?;
        let read = read(value);
        if read.is_none() {
            self.wrong(key, describe(value), need);
        }
        read
    }

    pub(crate) fn required<T: Default>(&mut self, key: &str, read: impl Fn(&mut Self) -> Option<T>) -> T {
        if self.value(key).is_none() {
            self.findings.missing(&format!("{}{key}", self.prefix));
            return T::default();
        }
        read(self).unwrap_or_default()
    }

    pub(crate) fn dim_maybe(&mut self, key: &str) -> Option<usize> {
        let read = |value: &Value| value.as_u64().filter(|&x| x > 0 && x < 1 << 31).map(|x| x as usize);
        self.read(key, "a positive integer below 2147483648", read)
    }

    /// A required extent.
    pub(crate) fn dim(&mut self, key: &str) -> usize {
        self.required(key, |object| object.dim_maybe(key))
    }

    pub(crate) fn dim_or(&mut self, key: &str, default: usize) -> usize {
        if self.value(key).is_none() { default } else { self.dim(key) }
    }

    /// An integer that may be zero.
    pub(crate) fn index_or(&mut self, key: &str, default: usize) -> usize {
        let read = |value: &Value| value.as_u64().filter(|&x| x < 1 << 31).map(|x| x as usize);
        self.read(key, "an integer from 0 to 2147483647", read).unwrap_or(default)
    }

    pub(crate) fn f64_maybe(&mut self, key: &str) -> Option<f64> {
        self.read(key, "a number", Value::as_f64)
    }

    pub(crate) fn f64_nonzero(&mut self, key: &str) -> Option<f64> {
        self.f64_maybe(key).filter(|&x| x != 0.0)
    }

    pub(crate) fn f64(&mut self, key: &str) -> f64 {
        self.required(key, |object| object.f64_maybe(key))
    }

    pub(crate) fn f64_or(&mut self, key: &str, default: f64) -> f64 {
        self.f64_maybe(key).unwrap_or(default)
    }

    pub(crate) fn f64s(&mut self, key: &str) -> Vec<f64> {
        self.required(key, |object| {
            object.read(key, "a list of numbers", |value| value.as_array()?.iter().map(Value::as_f64).collect())
        })
    }

    pub(crate) fn bool_or(&mut self, key: &str, default: bool) -> bool {
        self.read(key, "true or false", Value::as_bool).unwrap_or(default)
    }

    pub(crate) fn str(&mut self, key: &str) -> Option<String> {
        self.read(key, "a string", |value| value.as_str().map(str::to_owned))
    }

    pub(crate) fn token(&mut self, key: &str) -> Option<u32> {
        self.read(key, "a token id", |value| value.as_u64()?.try_into().ok())
    }

    pub(crate) fn token_or(&mut self, key: &str, default: Option<u32>) -> Option<u32> {
        if self.has(key) { self.token(key) } else { default }
    }

    /// One id or a list of them.
    pub(crate) fn tokens(&mut self, key: &str) -> Vec<u32> {
        let id = |value: &Value| value.as_u64()?.try_into().ok();
        let read = |value: &Value| match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        self.read(key, "a token id or a list of them", read).unwrap_or_default()
    }

    pub(crate) fn tokens_or(&mut self, key: &str, default: Option<u32>) -> Vec<u32> {
        if self.has(key) { self.tokens(key) } else { default.into_iter().collect() }
    }
}

/// A JSON value in words, short enough for a message.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{:?}", text.chars().take(60).collect::<String>()),
        Value::Array(items) => format!("a list of {}", items.len()),
        Value::Object(_) => "an object".into(),
        other => other.to_string(),
    }
}
