//! Arrays: `uniqueItems` and `contains` as positions, since a grammar can't compare what it has read.

use serde_json::{Map, Value, json};

use super::facts::Facts;
use super::{At, Keywords, Rewriter, count, fault};
use crate::chat_model::GrammarFault;

/// Most groups that the values of an `enum` are put into where items must differ: at most one value of each group is
/// taken, in their order.
const MAX_GROUPS: usize = 6;
/// Most positions that are written out.
const MAX_POSITIONS: usize = 256;

impl Rewriter<'_> {
    /// Writes the keywords of arrays.
    pub(super) fn array(
        &mut self,
        keywords: &Keywords,
        at: At<'_>,
        base: &mut Map<String, Value>,
        all: &mut Vec<Value>,
    ) -> Result<(), GrammarFault> {
        let At { path, depth, .. } = at;
        // What is within an array is not what else applies to the array.
        let inner = At { closed: true, ..at };
        let mut min = count(keywords, "minItems", path)?.unwrap_or(0);
        let mut max = count(keywords, "maxItems", path)?;
        // Up to draft 2019-09 a list of items is what prefixItems is now.
        let (prefix, rest) = match keywords.get("items") {
            Some(list @ Value::Array(_)) => (Some(("items", list)), keywords.get("additionalItems")),
            items => (keywords.get("prefixItems").map(|list| ("prefixItems", list)), items),
        };
        let mut prefix = match prefix {
            Some((_, Value::Array(list))) if list.is_empty() => Vec::new(),
            Some((keyword, list)) => self.list(list, inner, keyword)?,
            None => Vec::new(),
        };
        let source = rest.unwrap_or(&Value::Bool(true));
        let rest = self.schema(source, &format!("{path}/items"), true, depth + 1)?;
        if let Some(contains) = keywords.get("contains") {
            let least = count(keywords, "minContains", path)?.unwrap_or(1);
            let most = count(keywords, "maxContains", path)?;
            if least > MAX_POSITIONS || most.is_some_and(|most| most < least) {
                return Err(fault(path, "minContains", "can't be met within an answer"));
            }
            let contains = self.schema(contains, &format!("{path}/contains"), false, depth + 1)?;
            for place in 0..least {
                match prefix.get_mut(place) {
                    Some(item) => *item = json!({"allOf": [item, contains]}),
                    None => prefix.push(json!({"allOf": [rest, contains]})),
                }
            }
            min = min.max(least);
            // More items might be more that are contained.
            if most.is_some() {
                max = Some(max.unwrap_or(least).min(least));
            }
        }
        let unique = keywords.get("uniqueItems") == Some(&Value::Bool(true)) && max.is_none_or(|max| max > 1);
        if unique {
            let values = Facts::of(self, source).finite_values().filter(|_| prefix.is_empty());
            if let Some(values) = values {
                all.push(different(&values, &rest, min, max).ok_or_else(|| {
                    fault(
                        path,
                        "uniqueItems",
                        format!("items of {} values can't make up {min} that differ", values.len()),
                    )
                })?);
                return Ok(());
            }
            if min > 1 {
                let reason = format!(
                    "{min} different items can't be enforced; use minItems 1, or list the values in an enum"
                );
                return Err(fault(path, "uniqueItems", reason));
            }
            max = Some(1);
        }
        if min > MAX_POSITIONS * 256 {
            return Err(fault(path, "minItems", format!("{min} items are more than an answer has room for")));
        }
        if min > 0 {
            base.insert("minItems".into(), min.into());
        }
        if let Some(max) = max {
            base.insert("maxItems".into(), max.into());
        }
        if !prefix.is_empty() {
            base.insert("prefixItems".into(), prefix.into());
        }
        if rest != Value::Bool(true) {
            base.insert("items".into(), rest);
        }
        Ok(())
    }
}

/// Arrays of different values: for each choice of groups an array with one value of each.
fn different(values: &[Value], item: &Value, min: usize, max: Option<usize>) -> Option<Value> {
    let groups = values.len().min(MAX_GROUPS);
    if groups < min {
        // Too many for groups: the first ones, one after another.
        if values.len() < min || min > MAX_POSITIONS {
            return None;
        }
        let items: Vec<Value> =
            values.iter().take(min).map(|value| json!({"allOf": [item, {"enum": [value]}]})).collect();
        return Some(
            json!({"type": "array", "prefixItems": items, "items": false, "minItems": min, "maxItems": min}),
        );
    }
    let mut grouped = vec![Vec::new(); groups];
    for (place, value) in values.iter().enumerate() {
        grouped[place * groups / values.len()].push(value);
    }
    let of_group: Vec<Value> =
        grouped.iter().map(|group| json!({"allOf": [item, {"enum": group}]})).collect();
    let mut alternatives = Vec::new();
    for chosen in 0..1_u32 << groups {
        let items: Vec<&Value> = of_group
            .iter()
            .enumerate()
            .filter(|(group, _)| chosen >> group & 1 == 1)
            .map(|(_, item)| item)
            .collect();
        let length = items.len();
        if length < min || max.is_some_and(|max| length > max) {
            continue;
        }
        let mut array = json!({"type": "array", "items": false, "minItems": length, "maxItems": length});
        if let (Some(array), false) = (array.as_object_mut(), items.is_empty()) {
            array.insert("prefixItems".into(), json!(items));
        }
        alternatives.push(array);
    }
    if alternatives.is_empty() { None } else { Some(json!({"anyOf": alternatives})) }
}
