//! The request of `POST /v1/completions`: text that goes on, without messages and template.

use std::fmt;

use kimi_core::chat_model::RawPrompt;
use kimi_core::sampler::MAX_TOP_LOGPROBS;
use kimi_core::{CancelFlag, ChatRequest};
use serde::Deserialize;
use serde::de::{self, Deserializer, SeqAccess, Visitor};

use super::answer::{Prepared, Question};
use super::completion_writer::CompletionWriter;
use super::engine::ServedModel;
use super::error::ApiError;
use super::json::Body;
use super::options::{MAX_CHOICES, Options};
use super::output::OtherFormats;
use super::read::{Refusal, Whole};
use super::routes::App;

/// Most tokens of an answer where the request does not say, as OpenAI's API has it.
const MAX_TOKENS: u32 = 16;

#[derive(Debug, Deserialize)]
struct Fields {
    prompt: Prompts,
    suffix: Option<String>,
    echo: Option<bool>,
    logprobs: Option<Whole>,
}

/// One prompt or several.
#[derive(Debug, PartialEq)]
pub(super) struct Prompts(Vec<RawPrompt>);

/// Reads a request. `cancel` ends the making of its prompts.
///
/// # Errors
/// 400 that names the field, what was expected and what was found; 404 for a model that is not served.
pub(super) fn prepare(app: &App, mut body: Body, cancel: CancelFlag) -> Result<Prepared, ApiError> {
    let options: Options = body.part()?;
    let output = body.part::<OtherFormats>()?.format()?.unwrap_or_default();
    let fields: Fields = body.rest()?;
    if fields.suffix.is_some_and(|suffix| !suffix.is_empty()) {
        let message =
            "is not supported: Kimi was not trained to fill in text; put what follows into the prompt";
        return Err(ApiError::field("suffix", "unsupported_parameter", message));
    }
    let model = app.model(options.model.as_deref())?.clone();
    let logprobs = fields.logprobs.map(|n| n.within("logprobs", 0..=MAX_TOP_LOGPROBS as i64)).transpose()?;
    let echo = fields.echo.unwrap_or(false);
    if echo && logprobs.is_some() {
        let message = "is not supported together with logprobs: only tokens of the answer have probabilities";
        return Err(ApiError::field("echo", "unsupported_parameter", message));
    }
    let choices = options.choices()?;
    let Prompts(prompts) = fields.prompt;
    if prompts.len() * choices > MAX_CHOICES {
        let message =
            format!("{} prompts with {choices} answers each are more than {MAX_CHOICES}", prompts.len());
        return Err(ApiError::field("prompt", "array_above_max_length", message));
    }
    let mut echoed = Vec::new();
    let mut questions = Vec::new();
    for prompt in prompts {
        if echo {
            let text = match &prompt {
                RawPrompt::Text(text) => text.clone(),
                RawPrompt::Tokens(ids) => text(&model, ids)?,
            };
            echoed.push(text);
        }
        let chat = ChatRequest {
            logprobs: logprobs.is_some(),
            top_logprobs: logprobs.unwrap_or(0) as u8,
            output: output.clone(),
            raw: Some(prompt),
            cancel: cancel.clone(),
            ..options.request(&model, Some(false), Some(MAX_TOKENS))?
        };
        questions.push(Question { request: chat, choices });
    }
    let counts = (questions.len() * choices, choices);
    let writer = CompletionWriter::new(
        model.id(),
        counts,
        echoed,
        options.include_usage(),
        logprobs.map(|n| n as usize),
    );
    Ok(Prepared {
        model,
        questions,
        prompt_field: "prompt",
        parallel_calls: true,
        stream: options.stream(),
        writer: Box::new(writer),
    })
}

/// The text of a prompt's tokens.
fn text(model: &ServedModel, ids: &[u32]) -> Result<String, ApiError> {
    model.check_loaded()?;
    let text = model.engine().text(ids);
    text.map_err(|error| ApiError::field("prompt", "invalid_value", error.to_string()))
}

/// A string, a token, or an array of tokens.
enum Item {
    Text(String),
    Token(u32),
    Tokens(Vec<u32>),
}

/// A number that may be a token's id.
struct Token(u32);

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Id;
        impl Visitor<'_> for Id {
            type Value = Token;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a token id")
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Token, E> {
                u32::try_from(id)
                    .map(Token)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(id), &self))
            }
        }
        from.deserialize_any(Id)
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Item;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token id or an array of token ids")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Item, E> {
                Ok(Item::Text(text.to_owned()))
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Item, E> {
                Ok(Item::Text(text))
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<Item, E> {
                u32::try_from(id)
                    .map(Item::Token)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(id), &self))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
                let mut ids = Vec::new();
                while let Some(Token(id)) = seq.next_element()? {
                    ids.push(id);
                }
                Ok(Item::Tokens(ids))
            }
        }
        from.deserialize_any(Any)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OneOrMore;
        impl<'de> Visitor<'de> for OneOrMore {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, an array of strings, an array of token ids or an array of such arrays")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Prompts, E> {
                self.visit_string(text.to_owned())
            }

            fn visit_string<E: de::Error>(self, text: String) -> Result<Prompts, E> {
                Ok(Prompts(vec![RawPrompt::Text(text)]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let (mut ids, mut prompts) = (Vec::new(), Vec::new());
                while let Some(item) = seq.next_element()? {
                    match item {
                        Item::Text(text) => prompts.push(RawPrompt::Text(text)),
                        Item::Tokens(ids) => prompts.push(RawPrompt::Tokens(ids)),
                        Item::Token(id) => ids.push(id),
                    }
                }
                match (ids.is_empty(), prompts.is_empty()) {
                    (true, false) => Ok(Prompts(prompts)),
                    (false, true) => Ok(Prompts(vec![RawPrompt::Tokens(ids)])),
                    (true, true) => {
                        Err(Refusal::new("empty_array", "expected at least one prompt, found none")
                            .into_serde())
                    }
                    (false, false) => {
                        let message = "expected prompts or the tokens of one, found both in one array";
                        Err(Refusal::new("invalid_type", message).into_serde())
                    }
                }
            }
        }
        from.deserialize_any(OneOrMore)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn prompts_come_in_four_forms() {
        let read = |value: Value| serde_json::from_value::<Prompts>(value).map(|prompts| prompts.0);
        let text = |text: &str| RawPrompt::Text(text.to_owned());
        assert_eq!(read(json!("a")).unwrap(), [text("a")]);
        assert_eq!(read(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
        assert_eq!(read(json!([1, 2])).unwrap(), [RawPrompt::Tokens(vec![1, 2])]);
        let both = [RawPrompt::Tokens(vec![1]), RawPrompt::Tokens(vec![2])];
        assert_eq!(read(json!([[1], [2]])).unwrap(), both);
        for wrong in
            [json!([]), json!([1, "a"]), json!([-1]), json!([1.5]), json!([4294967296u64]), json!({})]
        {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
