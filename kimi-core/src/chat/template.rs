//! Renders a chat with the checkpoint's Jinja template, as `apply_chat_template` of transformers does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Object, Serde, Value as JinjaValue};
use minijinja::{Environment, Error as JinjaError, ErrorKind, State};
use serde_json::{Map, Value};
use thiserror::Error;

use super::bounded::{BoundedText, RenderLimits, Stopped};
use super::clock::strftime_now;
use super::fence::Fence;
use super::json_node::JsonNode;
use super::message::{Message, Tool};
use super::meter::{self, afford};
use super::partial::Thinking;
use super::python::float_repr;
use super::template_file::{self, TemplateSource};
use super::to_json::to_json;
use super::typescript;
use crate::tokenizer::{RenderedPrompt, SpecialTokens};

/// Largest template accepted, in bytes.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// Deepest nesting of JSON in tools, messages and variables.
pub(super) const MAX_DEPTH: usize = 100;
/// Steps that one rendering may take, 64 bytes of memory counting as one (see `Environment::set_fuel`); a
/// conversation that fills the largest context takes under a tenth.
pub(super) const FUEL: u64 = 4_000_000;
/// The name under which filters find their [`Rendering`]; no template can name it by accident.
const RENDERING: &str = "kimi rendering";
const NAME: &str = "chat_template";

/// Variables of a template that a request's own variables cannot replace.
const RESERVED: [&str; 5] = ["messages", "tools", "tools_ts_str", "add_generation_prompt", RENDERING];

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
    /// The prompt has more bytes than it may have.
    #[error("the prompt has more than {limit} bytes")]
    TooLong {
        /// [`RenderLimits::max_bytes`].
        limit: usize,
    },
    /// [`RenderLimits::cancel`] was set.
    #[error("the rendering was cancelled")]
    Cancelled,
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
    /// Whether the template asks for the tools as JSON.
    uses_tools: bool,
    /// Whether it asks for them as TypeScript.
    uses_typescript: bool,
    thinking: Thinking,
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
        let template = environment.get_template(NAME);
        let variables =
            template.map_err(|e| TemplateError::Compile(explain(&e)))?.undeclared_variables(false);
        let uses = |name: &str| variables.contains(name);
        let (uses_tools, uses_typescript) = (uses("tools"), uses("tools_ts_str"));
        let switch = ["thinking", "enable_thinking"].into_iter().find(|by| uses(by));
        let thinking = match (source.contains("<think>"), switch) {
            (true, Some(by)) => Thinking::Switched { by },
            (true, None) => Thinking::Always,
            (false, _) => Thinking::Never,
        };
        Ok(Self { source, environment, uses_tools, uses_typescript, thinking })
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

    /// What it knows of thinking.
    pub fn thinking(&self) -> Thinking {
        self.thinking
    }

    /// Renders a chat.
    ///
    /// For messages without special tokens' names the text is what the reference renders. Tools have their keys
    /// sorted at every level, as Moonshot's tokenizer does, and are passed both as JSON and as TypeScript
    /// (`tools_ts_str`), as far as the template asks for them.
    ///
    /// # Errors
    /// When the template fails on the chat, or does not come to an end.
    pub fn render(
        &self,
        request: &PromptRequest<'_>,
        special: &SpecialTokens,
    ) -> Result<RenderedPrompt, TemplateError> {
        self.render_within(request, special, &RenderLimits::default())
    }

    /// [`Self::render`] within limits.
    ///
    /// # Errors
    /// As [`Self::render`]; [`TemplateError::TooLong`] and [`TemplateError::Cancelled`].
    pub fn render_within(
        &self,
        request: &PromptRequest<'_>,
        special: &SpecialTokens,
        limits: &RenderLimits,
    ) -> Result<RenderedPrompt, TemplateError> {
        if let Some(name) = request.variables.keys().find(|k| RESERVED.contains(&k.as_str())) {
            return Err(TemplateError::Reserved { name: name.clone() });
        }
        let stopped = |why| match why {
            Stopped::TooLong => TemplateError::TooLong { limit: limits.max_bytes },
            Stopped::Cancelled => TemplateError::Cancelled,
        };
        let messages: Vec<Value> = request.messages.iter().map(Message::to_template).collect();
        let tools = if self.uses_tools || self.uses_typescript { request.tools } else { &[] };
        check_depth("messages", messages.iter())?;
        check_depth("chat_template_kwargs", request.variables.values())?;
        check_depth("tools", tools.iter().map(|tool| &**tool.json()))?;

        let mut strings = Vec::new();
        let values = messages.iter().chain(request.variables.values());
        for value in values.chain(tools.iter().map(|tool| &**tool.json())) {
            collect_strings(value, &mut strings);
        }
        strings.extend(request.variables.keys().map(String::as_str));
        let fence = Fence::new(special, strings).ok_or(TemplateError::NoMark)?;

        let mut context = BTreeMap::new();
        for (name, key) in [("[BOS]", "bos_token"), ("[EOS]", "eos_token"), ("[PAD]", "pad_token")] {
            if special.id_of(name).is_some() {
                context.insert(key.to_owned(), JinjaValue::from(name));
            }
        }
        for (name, value) in request.variables {
            context.insert(fence.string(name).into_owned(), JinjaValue::from(Serde(fence.value(value))));
        }
        let fenced = |value: Value| JinjaValue::from(Serde(fence.value(&value)));
        context.insert("messages".into(), messages.into_iter().map(fenced).collect());
        let declared = (!tools.is_empty() && self.uses_tools)
            .then(|| tools.iter().map(|tool| JsonNode::root(fence.shared(tool.json()))).collect());
        context.insert("tools".into(), declared.unwrap_or_else(|| JinjaValue::from(())));
        if self.uses_typescript && !tools.is_empty() {
            match typescript::declare(tools, limits).map_err(stopped)? {
                Ok(text) => {
                    context.insert("tools_ts_str".into(), JinjaValue::from(fence.string(&text)));
                }
                Err(error) => tracing::debug!(%error, "tools are declared as JSON"),
            }
        }
        context.insert("add_generation_prompt".into(), request.add_generation_prompt.into());
        let rendering = Arc::new(Rendering::new(fence.mark(), limits.clone()));
        context.insert(RENDERING.into(), JinjaValue::from_dyn_object(rendering.clone()));

        let mut out = BoundedText::new(limits);
        let context = JinjaValue::from_pairs(context);
        let rendered = self
            .environment
            .get_template(NAME)
            .and_then(|t| t.render_captured_to(context, &mut out).map(drop));
        match (rendered, out.stopped().or(rendering.stopped())) {
            (Ok(()), _) => Ok(fence.open(&out.into_string())),
            (Err(_), Some(why)) => Err(stopped(why)),
            (Err(error), None) => Err(TemplateError::Render(explain(&error))),
        }
    }
}

/// What the filters of one rendering share.
#[derive(Debug)]
pub(super) struct Rendering {
    /// The mark of the [`Fence`].
    pub(super) mark: char,
    pub(super) limits: RenderLimits,
    /// Whether a filter's text was too long.
    too_long: AtomicBool,
}

impl Object for Rendering {}

impl Rendering {
    fn new(mark: char, limits: RenderLimits) -> Self {
        Self { mark, limits, too_long: AtomicBool::new(false) }
    }

    /// The one of a template that is being rendered.
    pub(super) fn of(state: &State<'_, '_>) -> Result<Arc<Self>, JinjaError> {
        let found = state.lookup(RENDERING).and_then(|value| value.downcast_object::<Self>());
        found.ok_or_else(|| JinjaError::new(ErrorKind::InvalidOperation, "no rendering is under way"))
    }

    /// Remembers that an error of a filter means that a limit was met.
    pub(super) fn note(&self, error: JinjaError) -> JinjaError {
        let cause = std::error::Error::source(&error).and_then(|cause| cause.downcast_ref::<Stopped>());
        if cause == Some(&Stopped::TooLong) {
            self.too_long.store(true, Ordering::Relaxed);
        }
        error
    }

    fn stopped(&self) -> Option<Stopped> {
        match (self.limits.cancel.is_cancelled(), self.too_long.load(Ordering::Relaxed)) {
            (true, _) => Some(Stopped::Cancelled),
            (false, true) => Some(Stopped::TooLong),
            (false, false) => None,
        }
    }
}

/// Jinja as transformers sets it up: `trim_blocks`, `lstrip_blocks`, loop controls, Python's methods and
/// `json.dumps`.
fn environment() -> Result<Environment<'static>, TemplateError> {
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    let mut env = Environment::new();
    env.set_syntax(syntax.map_err(|e| TemplateError::Compile(explain(&e)))?);
    env.set_fuel(Some(FUEL));
    env.set_unknown_method_callback(|state, value, method, args| {
        args.iter().try_for_each(|value| afford(state, value))?;
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
    env.set_formatter(|out, state, value| match f64::try_from(value.clone()) {
        Ok(float) if value.is_number() && !value.is_integer() => {
            out.write_str(&float_repr(float)).map_err(JinjaError::from)
        }
        _ => {
            afford(state, value)?;
            minijinja::escape_formatter(out, state, value)
        }
    });
    meter::install(&mut env);
    env.add_filter("tojson", to_json);
    env.add_function("strftime_now", |format: &str| strftime_now(format));
    env.add_function(
        "raise_exception",
        |state: &State<'_, '_>, message: JinjaValue| -> Result<String, JinjaError> {
            afford(state, &message)?;
            Err(JinjaError::new(ErrorKind::InvalidOperation, message.to_string()))
        },
    );
    Ok(env)
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

fn check_depth<'v>(
    what: &'static str,
    mut values: impl Iterator<Item = &'v Value>,
) -> Result<(), TemplateError> {
    match values.any(|value| depth_exceeds(value, MAX_DEPTH - 1)) {
        true => Err(TemplateError::TooDeep { what, limit: MAX_DEPTH }),
        false => Ok(()),
    }
}

fn depth_exceeds(value: &Value, limit: usize) -> bool {
    match value {
        Value::Array(items) => limit == 0 || items.iter().any(|v| depth_exceeds(v, limit - 1)),
        Value::Object(map) => limit == 0 || map.values().any(|v| depth_exceeds(v, limit - 1)),
        _ => false,
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
