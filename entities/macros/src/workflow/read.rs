//! Reads the functions of a workflow's `impl` block, and refuses what cannot be one, with the fix.

use syn::{
    Attribute, Error, Expr, FnArg, Ident, ImplItem, ImplItemFn, ItemImpl, Pat, ReceiverKind,
    Result, ReturnType, Signature, Token, Type, Visibility,
};

use crate::entity::{SelfIs, argument, bare, doc_text, last};

/// The code of the workflow, and its steps.
pub(super) struct Functions {
    pub(super) description: String,
    /// The arguments of `run` behind the handle.
    pub(super) inputs: Vec<(Ident, Type)>,
    pub(super) result: Type,
    pub(super) steps: Vec<StepMethod>,
}

/// A method that is a step.
pub(super) struct StepMethod {
    pub(super) name: Ident,
    pub(super) attributes: Vec<Attribute>,
    pub(super) description: String,
    /// Whether it takes the attempt, before its arguments.
    pub(super) takes_step: bool,
    pub(super) inputs: Vec<(Ident, Type)>,
    pub(super) result: Type,
    pub(super) running_max: Option<Expr>,
}

const RUN: &str =
    "a workflow has a function `pub async fn run(ctx: Workflow<Self>, ..) -> Result<T, Failure>`";

impl Functions {
    pub(super) fn read(workflow: &Type, block: &ItemImpl) -> Result<Self> {
        let functions = block.items.iter().filter_map(|item| match item {
            ImplItem::Fn(function) => Some(function),
            _ => None,
        });
        let (mut run, mut steps) = (None, Vec::new());
        for function in functions {
            match function.sig.ident == "run" {
                true => run = Some(function),
                false => steps.extend(step(workflow, function)?),
            }
        }
        let run = run.ok_or_else(|| Error::new_spanned(&block.self_ty, RUN))?;
        let (inputs, result) = read_run(workflow, run)?;
        let of_run = doc_text(&run.attrs);
        let description = if of_run.is_empty() { doc_text(&block.attrs) } else { of_run };
        Ok(Self { description, inputs, result, steps })
    }
}

fn read_run(workflow: &Type, run: &ImplItemFn) -> Result<(Vec<(Ident, Type)>, Type)> {
    let signature = &run.sig;
    if signature.asyncness.is_none() || !matches!(run.vis, Visibility::Public(_)) {
        return Err(Error::new_spanned(&signature.ident, RUN));
    }
    if !signature.generics.params.is_empty() {
        let rule =
            "a workflow is not generic: it is started by name, with JSON; use concrete types";
        return Err(Error::new_spanned(&signature.generics, rule));
    }
    let mut inputs = signature.inputs.iter();
    let is_handle = |input: &FnArg| match input {
        FnArg::Typed(input) => last(&input.ty).is_some_and(|name| name == "Workflow"),
        FnArg::Receiver(_) => false,
    };
    match inputs.next() {
        Some(input) if is_handle(input) => {}
        Some(other) => {
            let rule = "the first argument is the handle, `ctx: Workflow<Self>`, and there is no `self`: what steps \
                        need is used in steps";
            return Err(Error::new_spanned(other, rule));
        }
        None => return Err(Error::new_spanned(&signature.ident, RUN)),
    }
    let inputs = inputs.map(|input| named(workflow, input)).collect::<Result<_>>()?;
    Ok((inputs, result_of(workflow, signature, RUN)?))
}

/// A step, or `None` for a helper: a function without `self`, or one that does not await.
fn step(workflow: &Type, function: &ImplItemFn) -> Result<Option<StepMethod>> {
    let signature = &function.sig;
    let limit = function.attrs.iter().find(|attribute| attribute.path().is_ident("step"));
    let Some(receiver) = signature.receiver().filter(|_| signature.asyncness.is_some()) else {
        return match limit {
            None => Ok(None),
            Some(limit) => {
                let rule = "a step is `async` and takes `&self`; this is a helper, which has no `#[step(..)]`";
                Err(Error::new_spanned(limit, rule))
            }
        };
    };
    if !matches!(function.vis, Visibility::Inherited) {
        let rule = "a step is not `pub`: the workflow alone begins it, as `ctx.name(..)`; a function for others goes into \
                    another `impl` block";
        return Err(Error::new_spanned(&function.vis, rule));
    }
    let is_shared = matches!(&receiver.kind, ReceiverKind::Reference(_, _, None));
    if !is_shared {
        let rule = "a step takes `&self`: many run at one time; keep what changes behind a lock or in a service";
        return Err(Error::new_spanned(receiver, rule));
    }
    if !signature.generics.params.is_empty() {
        let rule = "a step is not generic: its argument is stored as JSON; use concrete types";
        return Err(Error::new_spanned(&signature.generics, rule));
    }
    let mut inputs = signature.inputs.iter().skip(1).peekable();
    let takes_step = inputs.next_if(|input| is_attempt(input)).is_some();
    let inputs = inputs.map(|input| named(workflow, input)).collect::<Result<_>>()?;
    let rule =
        "a step returns a `Result<T, StepError>`: its errors decide whether it is tried again";
    Ok(Some(StepMethod {
        name: signature.ident.clone(),
        attributes: function.attrs.iter().filter(|it| it.path().is_ident("doc")).cloned().collect(),
        description: doc_text(&function.attrs),
        takes_step,
        inputs,
        result: result_of(workflow, signature, rule)?,
        running_max: limit.map(at_most).transpose()?,
    }))
}

/// `#[step(at_most = 32)]`.
fn at_most(attribute: &Attribute) -> Result<Expr> {
    attribute.parse_args_with(|input: syn::parse::ParseStream<'_>| {
        let word: Ident = input.parse()?;
        if word != "at_most" {
            return Err(Error::new(word.span(), "expected `at_most = 32`"));
        }
        input.parse::<Token![=]>()?;
        input.parse()
    })
}

/// Whether an argument is the attempt, `step: &Step`.
fn is_attempt(input: &FnArg) -> bool {
    let FnArg::Typed(input) = input else { return false };
    match bare(&input.ty) {
        Type::Reference(reference) => last(&reference.elem).is_some_and(|name| name == "Step"),
        _ => false,
    }
}

fn named(workflow: &Type, input: &FnArg) -> Result<(Ident, Type)> {
    let FnArg::Typed(input) = input else {
        return Err(Error::new_spanned(input, "expected an argument"));
    };
    let ty = argument(workflow, &input.ty)?;
    match &*input.pat {
        Pat::Ident(pattern) => Ok((pattern.ident.clone(), ty)),
        other => {
            let rule = "an argument is a plain name: take the value apart in the body";
            Err(Error::new_spanned(other, rule))
        }
    }
}

fn result_of(workflow: &Type, signature: &Signature, rule: &str) -> Result<Type> {
    use syn::visit_mut::VisitMut as _;
    let ReturnType::Type(_, ty) = &signature.output else {
        return Err(Error::new_spanned(&signature.ident, rule));
    };
    let mut ty = bare(ty).clone();
    SelfIs(workflow).visit_type_mut(&mut ty);
    Ok(ty)
}

/// Takes the attributes away that are this macro's own.
pub(crate) fn strip(block: &mut ItemImpl) {
    for item in &mut block.items {
        if let ImplItem::Fn(function) = item {
            function.attrs.retain(|attribute| !attribute.path().is_ident("step"));
        }
    }
}
