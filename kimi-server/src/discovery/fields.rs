//! Values of a JSON object by their keys: a wrong one is named with its key, and with what is probably meant.

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// Most characters of a value that a message shows.
const SHOWN: usize = 60;

/// Other names that people give to keys.
const OTHER_NAMES: [(&str, &[&str]); 4] = [
    ("address", &["ip", "host", "addr", "hostname", "ip_address", "ipaddress", "node_host"]),
    ("port", &["node_port", "listen_port"]),
    ("memory", &["mem", "ram", "memory_mb", "memory_mib", "memory_gb", "memory_bytes"]),
    ("device_capabilities", &["device", "capabilities", "devicecapabilities"]),
];

/// An object, and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fields<'a> {
    /// What comes before a key in messages: empty, or `outer.`.
    pub(super) path: &'a str,
    pub(super) object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn value(self, key: &str, expected: &str) -> Result<&'a Value, String> {
        self.object.get(key).ok_or_else(|| {
            let others =
                OTHER_NAMES.iter().find(|(name, _)| *name == key).map_or(&[][..], |(_, others)| others);
            let meant = self.object.keys().find(|found| {
                let found = found.to_lowercase().replace('-', "_");
                found == key || others.contains(&found.as_str())
            });
            let hint = meant.map(|found| format!("; there is {found:?}, write {key:?}")).unwrap_or_default();
            format!("{}{key} is missing, expected {expected}{hint}", self.path)
        })
    }

    fn wrong(self, key: &str, value: &Value, expected: &str, hint: &str) -> String {
        format!("{}{key} is {}, expected {expected}{hint}", self.path, shown(value))
    }

    /// A text.
    pub(super) fn text(self, key: &str, expected: &str) -> Result<&'a str, String> {
        let value = self.value(key, expected)?;
        value.as_str().ok_or_else(|| self.wrong(key, value, expected, ""))
    }

    /// A list of at most `max` texts; empty where there is none.
    pub(super) fn texts(self, key: &str, max: usize, expected: &str) -> Result<Vec<&'a str>, String> {
        let list = match self.object.get(key) {
            None => return Ok(Vec::new()),
            Some(Value::Array(list)) if list.len() <= max => list,
            Some(Value::Array(list)) => {
                return Err(format!("{}{key} is a list of {}, expected {expected}", self.path, list.len()));
            }
            Some(other) => return Err(self.wrong(key, other, expected, "")),
        };
        let text = |value: &'a Value| {
            let wrong =
                || format!("{}{key} has {} in its list, expected {expected}", self.path, shown(value));
            value.as_str().ok_or_else(wrong)
        };
        list.iter().map(text).collect()
    }

    /// An object.
    pub(super) fn object(self, key: &str, expected: &str) -> Result<&'a Map<String, Value>, String> {
        let value = self.value(key, expected)?;
        value.as_object().ok_or_else(|| self.wrong(key, value, expected, ""))
    }

    /// A whole number of at least 0.
    pub(super) fn whole(self, key: &str, expected: &str) -> Result<u64, String> {
        let value = self.value(key, expected)?;
        let hint = match value {
            Value::Number(number) => match number.as_u64() {
                Some(whole) => return Ok(whole),
                None => whole_float(number).map(|n| format!(": write {n}")),
            },
            Value::String(text) => without_quotes(text),
            _ => None,
        };
        Err(self.wrong(key, value, expected, &hint.unwrap_or_default()))
    }

    /// The port, where it is one.
    pub(super) fn port(self) -> Option<u16> {
        self.object.get("port").and_then(Value::as_u64).and_then(|port| port.try_into().ok())
    }
}

/// `524288` of `524288.0`.
fn whole_float(number: &Number) -> Option<u64> {
    let float = number.as_f64().filter(|x| *x >= 1.0 && *x < 1e15)?;
    (float.fract() == 0.0).then_some(float as u64)
}

/// What to write for a number in quotes, also with a unit of memory.
fn without_quotes(text: &str) -> Option<String> {
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let shift = match unit.trim().to_lowercase().as_str() {
        "" => return Some(format!(": write it without quotes, {number}")),
        "m" | "mb" | "mib" => 0,
        "g" | "gb" | "gib" => 10,
        "t" | "tb" | "tib" => 20,
        _ => return None,
    };
    let mib = number.checked_mul(1 << shift)?;
    Some(format!(": write it as a number of MiB without quotes, {mib}"))
}

/// A value, for messages.
pub(super) fn shown(value: &Value) -> String {
    let short = |text: String| match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}..", &text[..end]),
        None => text,
    };
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(text) => format!("the text {}", short(format!("{text:?}"))),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(object) => match object.is_empty() {
            true => "an empty object".to_owned(),
            false => format!("an object with {}", key_list(object)),
        },
    }
}

/// The keys of an object, at most five.
pub(super) fn key_list(object: &Map<String, Value>) -> String {
    let mut keys: Vec<String> = object.keys().take(5).map(|key| format!("{key:?}")).collect();
    if object.len() > keys.len() {
        keys.push("..".to_owned());
    }
    keys.join(", ")
}

/// A value whose objects have each key once, where JSON's last would win.
#[derive(Debug)]
pub(super) struct Unique(pub(super) Value);

impl<'de> Deserialize<'de> for Unique {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(UniqueVisitor)
    }
}

struct UniqueVisitor;

impl<'de> Visitor<'de> for UniqueVisitor {
    type Value = Unique;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Unique, E> {
        Ok(Unique(Value::Null))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Unique, E> {
        Ok(Unique(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Unique, A::Error> {
        let mut values = Vec::new();
        while let Some(Unique(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Unique(Value::Array(values)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
        let mut entries = Map::new();
        while let Some((key, Unique(value))) = map.next_entry::<String, Unique>()? {
            if entries.contains_key(&key) {
                return Err(A::Error::custom(format!("{key:?} stands twice in one object")));
            }
            entries.insert(key, value);
        }
        Ok(Unique(Value::Object(entries)))
    }
}
