//! The entity types of a node, with their Rust types erased: a state is a box, an operation an index.

use std::{
    any::Any,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use stead_entities::{
    BoxFuture, Context, Dependencies, Entity, IndexType, OperationType, Policy,
    collections::{self, Access, Loaded, Sealed},
    entity::{Argument, Body, EntityDescription, OperationKind, Outcome, Visibility},
    index::{IndexDescription, ValueRange},
    input::InputError,
    json,
    schemars::SchemaGenerator,
    state::LayoutText,
    stored::{self, Checks},
    workflow::WorkflowDescription,
};

use crate::map::Map;
use crate::store::{
    record::{Damaged, StoredState},
    tables::{indexes::IndexedValues, states::StateRecord},
};

/// A state whose type is known to its [`EntityType`] only.
pub(crate) type State = Box<dyn AnyState>;
/// State, context and outcome of an operation that awaited.
pub(crate) type Running = BoxFuture<'static, (State, Context, Outcome)>;

pub(crate) trait AnyState: Any + Send {
    fn clone_state(&self) -> State;
    fn json(&self) -> Result<Vec<u8>, Damaged>;
    /// Takes entries of its collections that were missed.
    fn supply(&mut self, loaded: &Loaded) -> Result<(), String>;
    /// Has entries of its collections leave memory, where those of one take more than so many bytes.
    fn evict(&mut self, bytes_max: usize);
    /// About how many bytes it takes in memory beside its stored form: entries of its collections, the run of a workflow.
    fn held_bytes(&mut self) -> usize;
}

impl<E: Entity> AnyState for E {
    fn clone_state(&self) -> State {
        Box::new(self.clone())
    }
    fn json(&self) -> Result<Vec<u8>, Damaged> {
        json::encode(self).map_err(|error| Damaged(error.to_string()))
    }
    fn supply(&mut self, loaded: &Loaded) -> Result<(), String> {
        collections::supply(self, loaded)
    }
    fn evict(&mut self, bytes_max: usize) {
        collections::evict(self, bytes_max);
    }
    fn held_bytes(&mut self) -> usize {
        collections::bytes(self) + Entity::held_bytes(self)
    }
}

/// A state in its stored form.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) state: Vec<u8>,
    pub(crate) sealed: Sealed,
}

/// One operation as a node finds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) index: usize,
    pub(crate) name: &'static str,
    pub(crate) kind: OperationKind,
    pub(crate) is_public: bool,
    /// Whether its argument is `()`.
    pub(crate) takes_nothing: bool,
}

/// An entity type as a node uses it.
pub(crate) trait EntityType: Send + Sync {
    fn name(&self) -> &'static str;
    /// The type in words, under the policy of a node.
    fn description(&self, node: Policy) -> EntityDescription;
    /// Describes the workflow type, where it is one.
    fn workflow(&self) -> Option<WorkflowDescription>;
    /// The dependencies of its operations that await, and of its queries.
    fn dependencies(&self) -> &Arc<Dependencies>;
    /// The names of those that are not given.
    fn missing(&self) -> &[&'static str];
    /// The policy of the type.
    fn policy(&self) -> &Policy;
    /// The policy of an operation, with what it takes from the type.
    fn policy_of(&self, index: usize) -> &Policy;
    fn version(&self) -> u32;
    /// The layouts by version, the present one first.
    fn layouts(&self) -> Vec<(u32, String)>;
    /// Whether states of a version can be read.
    fn knows(&self, version: u32) -> bool {
        version == self.version() || self.layouts().iter().any(|(of, _)| *of == version)
    }
    fn find(&self, operation: &str) -> Option<Found>;
    /// The operation that takes what was stored under a name, which it may have had before.
    fn find_stored(&self, operation: &str) -> Option<Found>;
    /// The names of the public operations and queries.
    fn names(&self) -> Vec<&'static str>;
    /// The names of all operations, also those that they had before.
    fn all_names(&self) -> Vec<&'static str>;
    fn name_of(&self, index: usize) -> &'static str;
    /// Reads an argument of an operation from its JSON.
    fn decode_argument(&self, index: usize, input: &[u8]) -> Result<Argument, InputError>;
    /// The state before the first turn.
    fn initial_state(&self) -> State;
    /// Whether states are readied when they come into memory.
    fn has_on_activate(&self) -> bool;
    /// Readies a state that comes into memory.
    fn activate(&self, state: &mut State, ctx: &Context);
    /// The operation that hears of dead letters.
    fn on_dead_letter(&self) -> Option<&'static str>;
    /// Whether its entities are instances of a workflow, whose operations hear why they failed, and have no dead letters.
    fn is_workflow(&self) -> bool;
    /// Whether states may have collections.
    fn has_collections(&self) -> bool;
    /// Checks the state that a turn leaves: that it, and what the turn changed of its collections, can be stored in so
    /// many bytes and shown as JSON. Where the type is not trusted, it is also read back. Collections that are new
    /// get numbers. Returns how many bytes of entries the turn changed.
    fn check_state(&self, state: &mut State, standard: Standard) -> Result<usize, String>;
    /// Encodes a state that had these collections, with what was changed of them, and proves that all of it can be
    /// read back. A type that fails is not trusted again. Of each collection so many bytes stay in memory, or nothing.
    fn encode_state(
        &self,
        state: &mut State,
        before: &[(u32, u64)],
        kept: usize,
    ) -> Result<Encoded, String>;
    /// Its indexes.
    fn indexes(&self) -> Vec<IndexDescription>;
    /// The names of the fields of its state; none where that is no struct with names.
    fn fields(&self) -> &[String];
    /// The indexed values of a state, and the indexes that cannot have one, because it is too long or because the
    /// author's method panics.
    fn indexed(&self, state: &State) -> (IndexedValues, Vec<&'static str>);
    /// Checks the state that a turn leaves: that it can be indexed.
    fn check_indexed(&self, state: &State) -> Result<(), String>;
    /// The values of an index that a text means; `None` where there is no such index.
    fn index_range(&self, index: &str, text: &str) -> Option<Result<ValueRange, String>>;
    /// Whether these are all indexed values of a state, as this program computes them.
    fn has_indexed(&self, state: &State, values: &IndexedValues) -> bool {
        let (indexed, lacking) = self.indexed(state);
        lacking.is_empty() && indexed == *values
    }
    /// Whether a record has the indexed values of its state. Where that cannot be read, there is nothing to index.
    fn is_indexed(&self, StateRecord { head, state, indexed, .. }: &StateRecord) -> bool {
        let decode = || self.decode_state(head.version, state).ok();
        head.version == self.version()
            && catch_unwind(AssertUnwindSafe(decode))
                .ok()
                .flatten()
                .is_none_or(|state| self.has_indexed(&state, indexed))
    }
    /// Proves that the state before the first turn can be kept, with every proof there is.
    fn prove_initial_state(&self) -> Result<(), String>;
    fn decode_state(&self, version: u32, bytes: &[u8]) -> Result<State, Damaged>;
    /// Runs an operation that does not await on a state.
    fn run(
        &self,
        index: usize,
        state: &mut State,
        ctx: &mut Context,
        argument: Argument,
    ) -> Outcome;
    /// Runs a query on a state.
    fn query(&self, index: usize, state: &State, ctx: &Context, argument: Argument) -> Outcome;
    /// Starts an operation that awaits.
    fn start(&self, index: usize, state: State, ctx: Context, argument: Argument) -> Running;
}

/// The rules for a state that a turn leaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Standard {
    /// The most bytes that it has in its stored form.
    pub(crate) bytes_max: usize,
    pub(crate) trust: Trust,
    /// The highest number of a collection that is in use.
    pub(crate) collections: u32,
}

/// Whether a state has to be read back after each turn, or once before its commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// No state of this activation was read back yet.
    Unproven,
    /// Such a state was read back before.
    Proven,
}

/// The entity types of a node by name.
pub(crate) type EntityTypes = Map<&'static str, Arc<dyn EntityType>>;

/// The entity type of `E`, with what it needs of what is given.
pub(crate) fn entity_type<E: Entity>(given: &Dependencies) -> Arc<dyn EntityType> {
    let (operations, policy) = (E::operations(), E::policy());
    let needs = E::dependencies();
    Arc::new(Typed::<E> {
        dependencies: Arc::new(given.only(&needs)),
        missing: given.missing(&needs),
        policies: operations.iter().map(|it| it.policy().or(policy)).collect(),
        policy,
        operations,
        indexes: E::indexes(),
        fields: OnceLock::new(),
        checks: Checks::of::<E>(),
        is_distrusted: AtomicBool::new(Checks::of::<E>().json_again),
        entity: PhantomData,
    })
}

struct Typed<E> {
    operations: Vec<OperationType<E>>,
    indexes: Vec<IndexType<E>>,
    /// The names of the fields of a state, once somebody has asked for them.
    fields: OnceLock<Vec<String>>,
    policy: Policy,
    /// Those of the operations, in their order.
    policies: Vec<Policy>,
    dependencies: Arc<Dependencies>,
    /// The dependencies that are not given.
    missing: Vec<&'static str>,
    checks: Checks,
    /// Whether each state is read back after its turn: always in debug builds, and of a type once one
    /// of its states could not be.
    is_distrusted: AtomicBool,
    entity: PhantomData<fn() -> E>,
}

// States are made by the same `Typed` that is handed them back.
fn typed_mut<E: Entity>(state: &mut State) -> &mut E {
    let state: &mut dyn Any = &mut **state;
    state.downcast_mut().expect("a state of this type")
}

fn typed<E: Entity>(state: &State) -> &E {
    let state: &dyn Any = &**state;
    state.downcast_ref().expect("a state of this type")
}

/// Whether the collections of a type can be kept, and used.
fn prove_collections<E: Entity>() -> Result<(), String> {
    let layout = LayoutText::described::<E>();
    if let Some(place) = layout.nested_collection() {
        return Err(format!(
            "{place} is a collection in an entry of another one: give its keys both parts"
        ));
    }
    if cfg!(panic = "abort") {
        return Err(
            "a turn that lacks entries of a collection is given up by unwinding: build with \
                    panic = \"unwind\""
                .to_owned(),
        );
    }
    Ok(())
}

impl<E: Entity> Typed<E> {
    /// Runs code that may use the lengths of collections, and no entries.
    fn within_lengths<T>(&self, code: impl FnOnce() -> T) -> T {
        if !self.checks.has_collections {
            return code();
        }
        collections::attempt(Access::Lengths, code)
            .unwrap_or_else(|miss| unreachable!("entries are not looked for: {miss:?}"))
    }

    fn found(&self, index: usize) -> Option<Found> {
        let known = self.operations.get(index)?;
        let is_public = known.visibility() == Visibility::Public;
        let takes_nothing = known.takes_nothing();
        Some(Found { index, name: known.name(), kind: known.kind(), is_public, takes_nothing })
    }
}

impl<E: Entity> EntityType for Typed<E> {
    fn name(&self) -> &'static str {
        E::NAME
    }

    fn description(&self, node: Policy) -> EntityDescription {
        EntityDescription::of::<E>(node)
    }

    fn workflow(&self) -> Option<WorkflowDescription> {
        E::workflow()
    }

    fn dependencies(&self) -> &Arc<Dependencies> {
        &self.dependencies
    }

    fn missing(&self) -> &[&'static str] {
        &self.missing
    }

    fn policy(&self) -> &Policy {
        &self.policy
    }

    fn policy_of(&self, index: usize) -> &Policy {
        &self.policies[index]
    }

    fn version(&self) -> u32 {
        E::VERSION
    }

    fn layouts(&self) -> Vec<(u32, String)> {
        let mut layouts = vec![(E::VERSION, LayoutText::of::<E>())];
        layouts.extend(E::earlier_layouts());
        layouts
    }

    fn find(&self, operation: &str) -> Option<Found> {
        self.found(self.operations.iter().position(|known| known.name() == operation)?)
    }

    fn find_stored(&self, operation: &str) -> Option<Found> {
        let was = |known: &OperationType<E>| known.formerly().contains(&operation);
        let present = self.find(operation);
        let former = || self.found(self.operations.iter().position(was)?);
        present.filter(|found| found.kind != OperationKind::Query).or_else(former).or(present)
    }

    fn names(&self) -> Vec<&'static str> {
        let public =
            self.operations.iter().filter(|known| known.visibility() == Visibility::Public);
        public.map(OperationType::name).collect()
    }

    fn all_names(&self) -> Vec<&'static str> {
        let changes = |known: &&OperationType<E>| known.kind() != OperationKind::Query;
        let names = |known: &OperationType<E>| [&[known.name()], known.formerly()].concat();
        self.operations.iter().filter(changes).flat_map(names).collect()
    }

    fn name_of(&self, index: usize) -> &'static str {
        self.operations[index].name()
    }

    fn decode_argument(&self, index: usize, input: &[u8]) -> Result<Argument, InputError> {
        self.operations[index].decode(input)
    }

    fn initial_state(&self) -> State {
        Box::new(E::default())
    }

    fn has_on_activate(&self) -> bool {
        E::ON_ACTIVATE.is_some()
    }

    fn activate(&self, state: &mut State, ctx: &Context) {
        if let Some(ready) = E::ON_ACTIVATE {
            self.within_lengths(|| ready(typed_mut::<E>(state), ctx));
        }
    }

    fn on_dead_letter(&self) -> Option<&'static str> {
        E::ON_DEAD_LETTER
    }

    fn is_workflow(&self) -> bool {
        E::IS_WORKFLOW
    }

    fn has_collections(&self) -> bool {
        self.checks.has_collections
    }

    fn check_state(&self, state: &mut State, standard: Standard) -> Result<usize, String> {
        let state = typed_mut::<E>(state);
        let Standard { bytes_max, trust, collections } = standard;
        let is_proven = trust == Trust::Proven && !self.is_distrusted.load(Ordering::Relaxed);
        let entries = match self.checks.has_collections {
            true => collections::check(state, collections, self.checks, is_proven)?,
            false => 0,
        };
        let unstorable = |error: stored::Unreadable| format!("the state cannot be stored: {error}");
        let size = stored::size(state).map_err(unstorable)?;
        if size > bytes_max {
            return Err(format!("the state has {size} bytes, the limit is {bytes_max}"));
        }
        if entries > bytes_max {
            return Err(format!(
                "the turn changed {entries} bytes of entries of collections, the limit is {bytes_max}: change \
                 fewer in one turn"
            ));
        }
        if !is_proven {
            let bytes = stored::encode(state).map_err(unstorable)?;
            self.within_lengths(|| self.checks.prove(state, &bytes))?;
            return Ok(entries);
        }
        self.within_lengths(|| self.checks.check_json(state))?;
        Ok(entries)
    }

    fn check_indexed(&self, state: &State) -> Result<(), String> {
        let state = typed::<E>(state);
        self.within_lengths(|| self.indexes.iter().try_for_each(|it| it.value(state).map(drop)))
    }

    fn encode_state(
        &self,
        state: &mut State,
        before: &[(u32, u64)],
        kept: usize,
    ) -> Result<Encoded, String> {
        let state = typed_mut::<E>(state);
        let mut encode = || {
            let sealed = match self.checks.has_collections || !before.is_empty() {
                true => collections::seal(state, before, self.checks, kept)?,
                false => Sealed::default(),
            };
            let bytes = stored::encode(state).map_err(|error| error.to_string())?;
            self.checks.prove_stored::<E>(&bytes)?;
            Ok(Encoded { state: bytes, sealed })
        };
        encode().inspect_err(|_| self.is_distrusted.store(true, Ordering::Relaxed))
    }

    fn indexes(&self) -> Vec<IndexDescription> {
        self.indexes.iter().map(IndexDescription::from).collect()
    }

    fn fields(&self) -> &[String] {
        self.fields.get_or_init(|| {
            let mut generator = SchemaGenerator::default();
            let schema = E::json_schema(&mut generator);
            let properties = schema.get("properties").and_then(|it| it.as_object());
            properties.map_or_else(Vec::new, |fields| fields.keys().cloned().collect())
        })
    }

    fn indexed(&self, state: &State) -> (IndexedValues, Vec<&'static str>) {
        let state = typed::<E>(state);
        let (mut values, mut lacking) = (Vec::with_capacity(self.indexes.len()), Vec::new());
        for index in &self.indexes {
            let value = || self.within_lengths(|| index.value(state));
            match catch_unwind(AssertUnwindSafe(value)) {
                Ok(Ok(value)) => values.push((index.name(), value)),
                Ok(Err(_)) | Err(_) => lacking.push(index.name()),
            }
        }
        (IndexedValues::new(values), lacking)
    }

    fn index_range(&self, index: &str, text: &str) -> Option<Result<ValueRange, String>> {
        let known = self.indexes.iter().find(|known| known.name() == index)?;
        Some(known.range(text))
    }

    fn prove_initial_state(&self) -> Result<(), String> {
        // One that panics is met, and said, where an entity begins.
        let Ok(mut state) = catch_unwind(E::default) else { return Ok(()) };
        if self.checks.has_collections {
            prove_collections::<E>()?;
            collections::number(&mut state, 0)?;
        }
        let stored = stored::encode(&state).map_err(|error| error.to_string())?;
        Checks::all_of::<E>().prove(&state, &stored)
    }

    fn decode_state(&self, version: u32, bytes: &[u8]) -> Result<State, Damaged> {
        use stead_entities::entity::StateDecoder as _;
        let stored = StoredState(bytes);
        if version == E::VERSION {
            return Ok(Box::new(stored.decode::<E>()?));
        }
        Ok(Box::new(self.within_lengths(|| E::upgrade(version, stored))?))
    }

    fn run(
        &self,
        index: usize,
        state: &mut State,
        ctx: &mut Context,
        argument: Argument,
    ) -> Outcome {
        match self.operations[index].body() {
            Body::Operation(body) => body(typed_mut::<E>(state), ctx, argument),
            Body::Query(_) | Body::Async(_) => unreachable!("only an operation is run"),
        }
    }

    fn query(&self, index: usize, state: &State, ctx: &Context, argument: Argument) -> Outcome {
        match self.operations[index].body() {
            Body::Query(body) => body(typed::<E>(state), ctx, argument),
            Body::Operation(_) | Body::Async(_) => unreachable!("only a query is asked"),
        }
    }

    fn start(&self, index: usize, mut state: State, ctx: Context, argument: Argument) -> Running {
        let state = std::mem::take(typed_mut::<E>(&mut state));
        let Body::Async(body) = self.operations[index].body() else {
            unreachable!("only an operation that awaits is started")
        };
        let running = body(state, ctx, argument);
        Box::pin(async move {
            let (state, ctx, outcome) = running.await;
            (Box::new(state) as State, ctx, outcome)
        })
    }
}
