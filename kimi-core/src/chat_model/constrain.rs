//! From a chat's request to the constraint of its answer.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::output::{GrammarError, GrammarFault, GrammarPlace, OutputFormat, ToolChoice};
use super::{ChatRequest, Shared};
use crate::chat::{ReasoningMode, Tool};
use crate::constraint::Constrained;
use crate::grammar::{AnswerConstraint, AnswerForm, CallForm, CallableTool, Form, Grammars, TextForm};

/// What holds the answer to the form that the request asks for; `None` if it asks for none.
pub(super) fn constraint(
    shared: &Shared,
    request: &ChatRequest,
    reasoning: ReasoningMode,
    prompt_tokens: usize,
) -> Result<Option<Constrained>, GrammarError> {
    let callable = callable(request)?;
    let required = is_required(&request.tool_choice);
    let strict = callable.iter().any(|(_, tool)| tool.strict());
    let free = request.output == OutputFormat::Text && !required;
    let few = callable.len() < request.tools.len() || !request.parallel_tool_calls;
    if free && (callable.is_empty() || !(strict || few)) {
        return Ok(None);
    }
    let grammars = &shared.grammars;
    let text = if required { None } else { Some(text(grammars, request)?) };
    let calls = if callable.is_empty() { None } else { Some(calls(grammars, request, &callable, required)?) };
    let room = shared.engine.config().context_tokens.saturating_sub(prompt_tokens);
    let max_tokens = request.max_tokens.unwrap_or(u32::MAX).min(u32::try_from(room).unwrap_or(u32::MAX));
    let form = AnswerForm { reasoning, text, calls, max_tokens };
    let output = |fault| GrammarError { place: GrammarPlace::Output, fault };
    let vocabulary = grammars.vocabulary().map_err(output)?;
    Ok(Some(Constrained::new(AnswerConstraint::new(vocabulary, form))))
}

/// Whether the answer may hold calls.
pub(super) fn may_call(request: &ChatRequest) -> bool {
    !request.tools.is_empty() && request.tool_choice != ToolChoice::None
}

fn is_required(choice: &ToolChoice) -> bool {
    match choice {
        ToolChoice::Auto | ToolChoice::None => false,
        ToolChoice::Required | ToolChoice::Named(_) => true,
        ToolChoice::Allowed { required, .. } => *required,
    }
}

/// The tools that may be called, with their places.
fn callable(request: &ChatRequest) -> Result<Vec<(usize, &Tool)>, GrammarError> {
    let fault = |fault| GrammarError { place: GrammarPlace::ToolChoice, fault };
    if is_required(&request.tool_choice) && request.tools.is_empty() {
        return Err(fault(GrammarFault::NoTools));
    }
    let names: &[String] = match &request.tool_choice {
        ToolChoice::Named(name) => std::slice::from_ref(name),
        ToolChoice::Allowed { names, .. } => names,
        _ => &[],
    };
    if let Some(name) = names.iter().find(|name| request.tools.iter().all(|tool| tool.name() != *name)) {
        let declared: Vec<_> = request.tools.iter().map(Tool::name).collect();
        return Err(fault(GrammarFault::UnknownTool { name: name.clone(), declared: declared.join(", ") }));
    }
    if !may_call(request) {
        return Ok(Vec::new());
    }
    let all = matches!(request.tool_choice, ToolChoice::Auto | ToolChoice::Required);
    let tools = request.tools.iter().enumerate();
    Ok(tools.filter(|(_, tool)| all || names.iter().any(|name| name == tool.name())).collect())
}

fn text(grammars: &Grammars, request: &ChatRequest) -> Result<TextForm, GrammarError> {
    let object = json!({"type": "object"});
    let form = match &request.output {
        OutputFormat::Text => return Ok(TextForm::Free),
        OutputFormat::JsonObject => Form::Json(&object),
        OutputFormat::JsonSchema { schema, .. } => Form::Json(schema),
        OutputFormat::Regex(expression) => Form::Regex(expression),
        OutputFormat::Lark(grammar) => Form::Lark(grammar),
        OutputFormat::Choice(words) => Form::Choice(words),
    };
    let fault = |fault| GrammarError { place: GrammarPlace::Output, fault };
    let mut piece = grammars.piece(&form).map_err(fault)?.fresh();
    if request.continue_last
        && let Some(content) = request.messages.last().and_then(|message| message.content.as_ref())
    {
        // The form is that of the whole answer, of which this is the beginning.
        let vocabulary = grammars.vocabulary().map_err(fault)?;
        for token in vocabulary.tokenizer.encode(&content.text()).unwrap_or_default() {
            piece.accept(&vocabulary, token).map_err(|_| {
                let reason = format!("the answer's given beginning {:?} is not of the form", content.text());
                fault(GrammarFault::Invalid { reason })
            })?;
        }
    }
    Ok(TextForm::Held(piece))
}

fn calls(
    grammars: &Grammars,
    request: &ChatRequest,
    callable: &[(usize, &Tool)],
    required: bool,
) -> Result<CallForm, GrammarError> {
    let vocabulary = |fault| GrammarError { place: GrammarPlace::ToolChoice, fault };
    if let Err(token) = grammars.vocabulary().map_err(vocabulary)?.markup {
        return Err(vocabulary(GrammarFault::NoToken { token }));
    }
    let tools = callable.iter().map(|&(index, tool)| {
        let arguments = if tool.strict() || required {
            let parameters = parameters(tool);
            match grammars.piece(&Form::Json(&parameters)) {
                Ok(piece) => Some(piece),
                Err(fault) if tool.strict() => {
                    return Err(GrammarError { place: GrammarPlace::Tool { index }, fault });
                }
                // Nobody asked for the schema to hold: an object is as near as it gets.
                Err(fault) => {
                    tracing::debug!(tool = tool.name(), %fault, "arguments are held to a JSON object only");
                    let object = Form::Json(&json!({"type": "object"}));
                    Some(grammars.piece(&object).map_err(vocabulary)?)
                }
            }
        } else {
            None
        };
        Ok(CallableTool { name: tool.name().to_owned(), arguments })
    });
    let named = matches!(request.tool_choice, ToolChoice::Named(_));
    let earlier = request.messages.iter().flat_map(|message| &message.tool_calls);
    Ok(CallForm {
        tools: tools.collect::<Result<_, _>>()?,
        several: request.parallel_tool_calls && !named,
        calls_before: earlier.clone().count() as u64,
        used_ids: earlier.map(|call| call.id.clone()).collect::<HashSet<_>>(),
    })
}

/// The schema of a tool's arguments, which are an object even where the schema does not say so. Without parameters there
/// are none to give.
fn parameters(tool: &Tool) -> Value {
    let Some(declared) = tool.parameters().filter(|p| !p.is_null()) else {
        return json!({"type": "object", "additionalProperties": false});
    };
    let mut schema = declared.clone();
    if let Some(schema) = schema.as_object_mut()
        && !["type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"]
            .iter()
            .any(|key| schema.contains_key(*key))
    {
        schema.insert("type".into(), "object".into());
    }
    schema
}
