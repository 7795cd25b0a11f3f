//! From messages to a prompt, and from the model's text back to a message.
//!
//! [`Message`] and [`Tool`] have OpenAI's JSON shape; [`ChatTemplate`] renders them as the checkpoint's Jinja
//! template does; [`ReplyParser`] takes the model's answer apart into reasoning, text and tool calls while it
//! streams.

mod bounded;
mod clock;
mod fence;
mod history;
mod json_node;
mod message;
mod meter;
mod parser;
mod partial;
mod python;
mod scanner;
mod template;
mod template_file;
mod to_json;
mod tool_id;
mod typescript;

pub use bounded::RenderLimits;
pub use history::normalize_tool_call_ids;
pub use message::{Content, ContentPart, FunctionCall, Message, Tool, ToolCall, ToolError};
pub use parser::{
    ParsedCall, ParserOptions, ReasoningMode, Reply, ReplyEvent, ReplyParser, ToolMarkup, TrailingText,
};
pub use partial::Thinking;
pub use template::{ChatTemplate, PromptRequest, TemplateError};
pub use template_file::TemplateSource;
pub use tool_id::{ToolSignature, is_call_name};
pub use typescript::{TypeScriptError, tools_to_typescript};
