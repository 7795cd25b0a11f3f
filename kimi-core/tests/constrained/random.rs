//! Random schemas: an answer that comes to an end validates, whatever tokens are taken.

use kimi_core::grammar::{Form, GrammarFault};
use kimi_core::tokenizer::Tokenizer;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::common::tiny_file;
use crate::sampler::{KIMI, Random, Sampler, check};

/// A random schema of at most this depth. Many of its keywords contradict each other.
struct Schemas {
    random: Random,
}

impl Schemas {
    fn document(&mut self) -> Value {
        let mut schema = self.schema(3);
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("$defs".into(), json!({"a": self.schema(2), "b/c": self.schema(1)}));
        }
        schema
    }

    fn schema(&mut self, depth: usize) -> Value {
        let kinds = if depth == 0 { 6 } else { 16 };
        match self.random.below(kinds) {
            0 => json!({"type": "boolean"}),
            1 => self.number(),
            2 | 3 => self.string(),
            4 => self.values(),
            5 => json!({"type": self.pick(&["null", "boolean", "string", "integer"])}),
            6 | 7 => self.array(depth - 1),
            8 => json!({"anyOf": self.several(depth - 1)}),
            9 => json!({"oneOf": self.several(depth - 1)}),
            10 => self.composed(depth - 1),
            11 => json!({"$ref": self.pick(&["#/$defs/a", "#/$defs/b~1c", "#"])}),
            _ => self.object(depth - 1),
        }
    }

    fn several(&mut self, depth: usize) -> Vec<Value> {
        (0..1 + self.random.below(3)).map(|_| self.schema(depth)).collect()
    }

    fn number(&mut self) -> Value {
        let mut schema = json!({"type": self.pick(&["integer", "number"])});
        let low = self.random.below(2000) as i64 - 1000;
        self.maybe(&mut schema, "minimum", json!(low));
        let high = low + 1 + self.random.below(3000) as i64;
        self.maybe(&mut schema, "exclusiveMaximum", json!(high));
        if self.random.below(4) == 0 {
            schema["multipleOf"] = json!(self.random.below(9) + 1);
        }
        schema
    }

    fn string(&mut self) -> Value {
        let mut schema = json!({"type": "string"});
        let pattern = self.pick(&["^[a-c]+$", "x\\d", "^\\S*$", "^(ab|cd)?.$", "[^/]$", "^\\w+@\\w+$"]);
        self.maybe(&mut schema, "pattern", json!(pattern));
        let min = self.random.below(4);
        self.maybe(&mut schema, "minLength", json!(min));
        self.maybe(&mut schema, "maxLength", json!(min + self.random.0 as usize % 9));
        if self.random.below(5) == 0 {
            let format = self.pick(&[
                "date",
                "date-time",
                "time",
                "email",
                "uuid",
                "ipv4",
                "uri",
                "hostname",
                "color",
            ]);
            return json!({"type": "string", "format": format});
        }
        schema
    }

    fn values(&mut self) -> Value {
        let values = [
            json!("a"),
            json!(""),
            json!("\"q\\"),
            json!(1),
            json!(-2.5),
            json!(null),
            json!(true),
            json!([1, "x"]),
            json!({"k": 1}),
            json!("é😀"),
        ];
        let count = 1 + self.random.below(4);
        let chosen: Vec<_> = (0..count).map(|_| values[self.random.below(values.len())].clone()).collect();
        if count == 1 { json!({"const": chosen[0]}) } else { json!({"enum": chosen}) }
    }

    fn array(&mut self, depth: usize) -> Value {
        let mut schema = json!({"type": "array"});
        let items = self.schema(depth);
        self.maybe(&mut schema, "items", items);
        let min = self.random.below(3);
        self.maybe(&mut schema, "minItems", json!(min));
        self.maybe(&mut schema, "maxItems", json!(min + self.random.0 as usize % 3));
        if self.random.below(5) == 0 {
            schema["uniqueItems"] = json!(true);
        }
        if self.random.below(6) == 0 {
            schema["prefixItems"] = json!(self.several(depth));
        }
        if self.random.below(8) == 0 {
            schema["contains"] = self.schema(depth);
        }
        schema
    }

    fn object(&mut self, depth: usize) -> Value {
        let names = ["a", "b", "c d", "kind", "x-1", "é"];
        let mut properties = Map::new();
        let mut required = Vec::new();
        for _ in 0..self.random.below(4) {
            let name = names[self.random.below(names.len())];
            properties.insert(name.into(), self.schema(depth));
            if self.random.below(2) == 0 {
                required.push(name);
            }
        }
        let mut schema = json!({"type": "object", "properties": properties});
        required.sort_unstable();
        required.dedup();
        self.maybe(&mut schema, "required", json!(required));
        let others = if self.random.below(2) == 0 { json!(false) } else { self.schema(0) };
        self.maybe(&mut schema, "additionalProperties", others);
        if self.random.below(6) == 0 {
            schema["patternProperties"] = json!({"^x-": self.schema(depth)});
        }
        if self.random.below(8) == 0 {
            schema["minProperties"] = json!(self.random.below(3));
        }
        if self.random.below(8) == 0 {
            schema["maxProperties"] = json!(1 + self.random.below(3));
        }
        if self.random.below(8) == 0 {
            schema["dependentRequired"] = json!({"a": ["b"]});
        }
        if self.random.below(8) == 0 {
            schema["propertyNames"] = json!({"pattern": "^[a-z]"});
        }
        schema
    }

    /// Schemas that apply others to the same value.
    fn composed(&mut self, depth: usize) -> Value {
        let mut schema = self.object(depth);
        let other = self.object(depth);
        match self.random.below(5) {
            0 => schema["allOf"] = json!([other]),
            1 => schema["anyOf"] = json!([other, self.object(depth)]),
            2 => schema["oneOf"] = json!([{"required": ["a"]}, {"required": ["b"]}]),
            3 => {
                schema["if"] = json!({"properties": {"kind": {"const": "a"}}, "required": ["kind"]});
                schema["then"] = other;
            }
            _ => schema["not"] = json!({"required": ["a", "b"]}),
        }
        schema
    }

    fn pick<'s>(&mut self, list: &[&'s str]) -> &'s str {
        list[self.random.below(list.len())]
    }

    fn maybe(&mut self, schema: &mut Value, key: &str, value: Value) {
        if self.random.below(3) == 0 {
            schema[key] = value;
        }
    }
}

/// Answers to a schema, none of which may be invalid; whether it was refused.
fn answers(sampler: &Sampler, schema: &Value, seed: u64) -> Result<bool, String> {
    for seed in seed..seed + 3 {
        match sampler.write(&Form::Json(schema), seed) {
            Ok(Some(text)) => check(schema, &text).map_err(|e| format!("{e}\nof {schema}"))?,
            Ok(None) => {}
            Err(GrammarFault::Schema { path, .. }) if path.starts_with('#') => return Ok(true),
            Err(GrammarFault::Invalid { .. } | GrammarFault::TooLarge { .. }) => return Ok(true),
            Err(fault) => return Err(format!("{fault}\nof {schema}")),
        }
    }
    Ok(false)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn answers_to_random_schemas_validate(seed: u64) {
        let schema = Schemas { random: Random(seed) }.document();
        answers(&KIMI, &schema, seed).map_err(TestCaseError::fail)?;
    }
}

/// A vocabulary of bytes reaches every state of a grammar.
#[test]
fn answers_of_bytes_validate() {
    let sampler = Sampler::new(Tokenizer::new(&tiny_file(), None).unwrap());
    let mut refused = 0;
    for seed in 0..300 {
        let schema = Schemas { random: Random(seed) }.document();
        refused += usize::from(answers(&sampler, &schema, seed).unwrap());
    }
    println!("{refused} of 300 random schemas were refused");
    assert!(refused < 150, "{refused} of 300 random schemas were refused");
}
