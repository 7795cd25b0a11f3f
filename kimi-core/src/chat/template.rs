//! Renders a chat with the checkpoint's Jinja template, as `apply_chat_template` of transformers does.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as JinjaValue};
use minijinja::{Environment, Error as JinjaError, ErrorKind, State};
use serde_json::{Map, Value};
use thiserror::Error;

use super::clock::strftime_now;
use super::fence::Fence;
use super::message::{Message, Tool};
use super::python::{JsonStyle, dumps, float_repr};
use super::template_file::{self, TemplateSource};
use super::typescript::tools_to_typescript;
use crate::tokenizer::{RenderedPrompt, SpecialTokens};

/// Largest template accepted, in bytes.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Deepest nesting of JSON in tools, messages and variables.
const MAX_DEPTH: usize = 100;
/// Steps that one rendering may take, 64 bytes of memory counting as one (see `Environment::set_fuel`); a
/// conversation that fills the largest context takes under a tenth.
const FUEL: u64 = 4_000_000;
/// The name under which a rendering's mark is known to filters; no template can name it by accident.
const MARK: &str = "kimi fence mark";
const NAME: &str = "chat_template";

/// Variables of a template that a request's own variables cannot replace.
const RESERVED: [&str; 5] = ["messages", "tools", "tools_ts_str", "add_generation_prompt", MARK];

/// What is wrong with a template, or with a chat that it should render.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The template is larger than any template.
    #[error("the chat template has {found} bytes; at most {limit} are accepted")]
    TooLarge {
        /// Its size.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// A file is not what it should be.
    #[error("{file} {reason}")]
    File {
        /// Which file.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The template is not valid Jinja, or uses what is not supported.
    #[error("the chat template cannot be compiled: {0}")]
    Compile(String),
    /// The template refused the chat (`raise_exception`), failed on it, or did not come to an end.
    #[error("the chat template failed on this chat: {0}")]
    Render(String),
    /// A template variable of the request has the name of one that the template needs.
    #[error("chat_template_kwargs.{name}: this name is reserved; choose another")]
    Reserved {
        /// The name.
        name: String,
    },
    /// JSON nested too deeply.
    #[error("{what} is nested more than {limit} levels deep")]
    TooDeep {
        /// Which input.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The chat uses up every character that could mark a user's text.
    #[error(
        "the chat holds every one of the 65,566 private characters that mark a user's text; leave one of them out"
    )]
    NoMark,
}

/// What is to be rendered.
#[derive(Debug, Clone, Copy)]
pub struct PromptRequest<'a> {
    /// The conversation, oldest message first.
    pub messages: &'a [Message],
    /// The tools that the model may call.
    pub tools: &'a [Tool],
    /// Whether the prompt ends with the beginning of an assistant's message.
    pub add_generation_prompt: bool,
    /// Further variables, for instance `thinking: false` for K2.5.
    pub variables: &'a Map<String, Value>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    source: String,
    environment: Environment<'static>,
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source", &self.source()).finish()
    }
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// When it is too large or not valid.
    pub fn new(source: &str) -> Result<Self, TemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(TemplateError::TooLarge { found: source.len(), limit: MAX_TEMPLATE_BYTES });
        }
        // Jinja in Python reads every kind of line end as a line feed.
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let mut environment = environment()?;
        environment
            .add_template_owned(NAME, source.clone())
            .map_err(|e| TemplateError::Compile(explain(&e)))?;
        Ok(Self { source, environment })
    }

    /// Finds a checkpoint's template: the bytes of `chat_template.jinja` if there is one, else the one inside
    /// `chat_template.json` or `tokenizer_config.json`, else a default in Kimi-K2-Instruct's form; and says where it was.
    ///
    /// # Errors
    /// When a file is malformed or its template is.
    pub fn from_files(
        jinja: Option<&[u8]>,
        json: Option<&[u8]>,
        tokenizer_config: Option<&[u8]>,
    ) -> Result<(Self, TemplateSource), TemplateError> {
        let (text, source) = template_file::find(jinja, json, tokenizer_config)?;
        Ok((Self::new(&text)?, source))
    }

    /// The template's text, with line feeds as line ends.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a chat.
    ///
    /// For messages without special tokens' names the text is what the reference renders. Tools are sorted by
    /// key at every level, as Moonshot's tokenizer does, and passed both as JSON and as TypeScript
    /// (`tools_ts_str`).
    ///
    /// # Errors
    /// When the template fails on the chat, or does not come to an end.
    pub fn render(
        &self,
        request: &PromptRequest<'_>,
        special: &SpecialTokens,
    ) -> Result<RenderedPrompt, TemplateError> {
        if let Some(name) = request.variables.keys().find(|k| RESERVED.contains(&k.as_str())) {
            return Err(TemplateError::Reserved { name: name.clone() });
        }
        let messages: Vec<Value> = request.messages.iter().map(Message::to_template).collect();
        let messages = bounded("messages", Value::Array(messages))?;
        let variables = bounded("chat_template_kwargs", Value::Object(request.variables.clone()))?;
        let mut tools = Vec::with_capacity(request.tools.len());
        for tool in request.tools {
            tools.push(sorted(&bounded("tools", tool.json().clone())?));
        }
        let typescript = typescript_of(&tools);
        let tools = if tools.is_empty() { Value::Null } else { Value::Array(tools) };

        let mut strings = Vec::new();
        for value in [&messages, &variables, &tools] {
            collect_strings(value, &mut strings);
        }
        let fence = Fence::new(special, strings).ok_or(TemplateError::NoMark)?;
        let mut context = Map::new();
        for (name, key) in [("[BOS]", "bos_token"), ("[EOS]", "eos_token"), ("[PAD]", "pad_token")] {
            if special.id_of(name).is_some() {
                context.insert(key.into(), name.into());
            }
        }
        if let Value::Object(variables) = fence.value(&variables) {
            context.extend(variables);
        }
        context.insert("messages".into(), fence.value(&messages));
        context.insert("tools".into(), fence.value(&tools));
        if let Some(text) = typescript {
            context.insert("tools_ts_str".into(), fence.string(&text).into_owned().into());
        }
        context.insert("add_generation_prompt".into(), request.add_generation_prompt.into());
        context.insert(MARK.into(), fence.mark().to_string().into());
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|t| t.render(Serde(&context)))
            .map_err(|e| TemplateError::Render(explain(&e)))?;
        Ok(fence.open(&rendered))
    }
}

/// Jinja as transformers sets it up: `trim_blocks`, `lstrip_blocks`, loop controls, Python's methods and
/// `json.dumps`.
fn environment() -> Result<Environment<'static>, TemplateError> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let mut env = Environment::new();
    env.set_syntax(syntax.map_err(|e| TemplateError::Compile(explain(&e)))?);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.set_formatter(|out, state, value| match f64::try_from(value.clone()) {
        Ok(float) if value.is_number() && !value.is_integer() => {
            out.write_str(&float_repr(float)).map_err(JinjaError::from)
        }
        _ => minijinja::escape_formatter(out, state, value),
    });
    env.add_filter("tojson", to_json);
    env.add_function("strftime_now", |format: String| strftime_now(&format));
    env.add_function("raise_exception", |message: String| -> Result<String, JinjaError> {
        Err(JinjaError::new(ErrorKind::InvalidOperation, message))
    });
    Ok(env)
}

/// Python's `json.dumps` with the options that transformers hands through.
fn to_json(state: &State<'_, '_>, value: &JinjaValue, options: Kwargs) -> Result<String, JinjaError> {
    let fail = |message: String| JinjaError::new(ErrorKind::InvalidOperation, message);
    if value.is_undefined() {
        return Err(fail("tojson: the value is undefined".into()));
    }
    let mut style = JsonStyle {
        ensure_ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        keep: state.lookup(MARK).and_then(|m| m.as_str().and_then(|m| m.chars().next())),
        ..JsonStyle::default()
    };
    if let Some(indent) = options.get::<Option<JinjaValue>>("indent")?.filter(|i| !i.is_none()) {
        style.indent = Some(match (indent.as_str(), indent.as_usize()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) if width <= 64 => " ".repeat(width),
            _ => {
                return Err(fail(format!(
                    "tojson: indent must be a text or a number up to 64, found {indent}"
                )));
            }
        });
        style.item_separator = ",".into();
    }
    if let Some(separators) = options.get::<Option<JinjaValue>>("separators")?.filter(|s| !s.is_none()) {
        let (Ok(item), Ok(key)) = (separators.get_item_by_index(0), separators.get_item_by_index(1)) else {
            return Err(fail(format!("tojson: separators must be two texts, found {separators}")));
        };
        (style.item_separator, style.key_separator) = (item.to_string(), key.to_string());
    }
    options.assert_all_used()?;
    let value = serde_json::to_value(value).map_err(|e| fail(format!("tojson: {e}")))?;
    if depth_exceeds(&value, MAX_DEPTH) {
        return Err(fail(format!("tojson: nested more than {MAX_DEPTH} levels deep")));
    }
    let text = dumps(&value, &style);
    state.consume_fuel(text.len() as u64 / 64)?;
    Ok(text)
}

/// A Jinja error with its causes on one line.
fn explain(error: &JinjaError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// The TypeScript form; `None` where a schema has none, and the template prints JSON.
fn typescript_of(tools: &[Value]) -> Option<String> {
    if tools.is_empty() {
        return None;
    }
    let tools: Vec<Tool> = tools.iter().filter_map(|t| Tool::try_from(t.clone()).ok()).collect();
    match tools_to_typescript(&tools) {
        Ok(text) => Some(text),
        Err(error) => {
            tracing::debug!(%error, "tools are declared as JSON");
            None
        }
    }
}

fn bounded(what: &'static str, value: Value) -> Result<Value, TemplateError> {
    if depth_exceeds(&value, MAX_DEPTH) {
        return Err(TemplateError::TooDeep { what, limit: MAX_DEPTH });
    }
    Ok(value)
}

fn depth_exceeds(value: &Value, limit: usize) -> bool {
    match value {
        Value::Array(items) => limit == 0 || items.iter().any(|v| depth_exceeds(v, limit - 1)),
        Value::Object(map) => limit == 0 || map.values().any(|v| depth_exceeds(v, limit - 1)),
        _ => false,
    }
}

/// The value with the keys of every object in order (`deep_sort_dict` of Moonshot's tokenizer).
fn sorted(value: &Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.iter().map(sorted).collect()),
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            Value::Object(entries.into_iter().map(|(k, v)| (k.clone(), sorted(v))).collect())
        }
        other => other.clone(),
    }
}

fn collect_strings<'v>(value: &'v Value, into: &mut Vec<&'v str>) {
    match value {
        Value::String(text) => into.push(text),
        Value::Array(items) => items.iter().for_each(|v| collect_strings(v, into)),
        Value::Object(map) => map.iter().for_each(|(key, v)| {
            into.push(key);
            collect_strings(v, into);
        }),
        _ => {}
    }
}
