//! The entity types of a node, with their Rust types erased: a state is a box, an operation an index.

use std::{any::Any, marker::PhantomData, panic::catch_unwind, sync::Arc};

use stead_entities::{
    BoxFuture, Context, Entity, OperationType,
    entity::{Body, EntityDescription, OperationKind, Outcome, Visibility},
    input::InputError,
    json,
    state::LayoutText,
    stored::Checks,
};

use crate::map::Map;
use crate::store::record::{Damaged, StoredState, encode_state};

/// A state whose type is known to its [`EntityType`] only.
pub(crate) type State = Box<dyn AnyState>;
/// State, context and outcome of an operation that awaited.
pub(crate) type Running = BoxFuture<'static, (State, Context, Outcome)>;

pub(crate) trait AnyState: Any + Send {
    fn clone_state(&self) -> State;
    fn encode(&self) -> Result<Vec<u8>, Damaged>;
    fn json(&self) -> Result<Vec<u8>, Damaged>;
}

impl<E: Entity> AnyState for E {
    fn clone_state(&self) -> State {
        Box::new(self.clone())
    }
    fn encode(&self) -> Result<Vec<u8>, Damaged> {
        encode_state(self)
    }
    fn json(&self) -> Result<Vec<u8>, Damaged> {
        json::encode(self).map_err(|error| Damaged(error.to_string()))
    }
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

/// What a node knows of an entity type.
pub(crate) trait EntityType: Send + Sync {
    fn name(&self) -> &'static str;
    fn description(&self) -> EntityDescription;
    fn version(&self) -> u32;
    /// The layouts by version, the present one first.
    fn layouts(&self) -> Vec<(u32, String)>;
    /// Whether states of a version can be read.
    fn knows(&self, version: u32) -> bool {
        version == self.version() || self.layouts().iter().any(|(of, _)| *of == version)
    }
    fn find(&self, operation: &str) -> Option<Found>;
    /// The names of the public operations and queries.
    fn names(&self) -> Vec<&'static str>;
    /// The names of all operations.
    fn all_names(&self) -> Vec<&'static str>;
    fn name_of(&self, index: usize) -> &'static str;
    fn check(&self, index: usize, input: &[u8]) -> Result<(), InputError>;
    fn fresh(&self) -> State;
    /// Proves, as far as it is needed, that a state can be read back from its stored form.
    fn prove(&self, state: &State, stored: &[u8]) -> Result<(), String>;
    /// The same for the state before the first turn, with every proof there is.
    fn prove_default(&self) -> Result<(), String>;
    fn decode(&self, version: u32, bytes: &[u8]) -> Result<State, Damaged>;
    fn run(&self, index: usize, state: &mut State, ctx: &mut Context, input: &[u8]) -> Outcome;
    fn start(
        &self,
        index: usize,
        state: State,
        ctx: Context,
        input: &[u8],
    ) -> Result<Running, InputError>;
}

/// The entity types of a node by name.
pub(crate) type EntityTypes = Map<&'static str, Arc<dyn EntityType>>;

pub(crate) fn entity_type<E: Entity>() -> Arc<dyn EntityType> {
    Arc::new(Typed::<E> {
        operations: E::operations(),
        checks: Checks::of::<E>(),
        entity: PhantomData,
    })
}

struct Typed<E> {
    operations: Vec<OperationType<E>>,
    checks: Checks,
    entity: PhantomData<fn() -> E>,
}

fn typed<E: Entity>(state: &mut State) -> &mut E {
    let state: &mut dyn Any = &mut **state;
    // States are made by the same `Typed` that is handed them back.
    state.downcast_mut().expect("a state of this type")
}

impl<E: Entity> EntityType for Typed<E> {
    fn name(&self) -> &'static str {
        E::NAME
    }

    fn description(&self) -> EntityDescription {
        EntityDescription::of::<E>()
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
        let index = self.operations.iter().position(|known| known.name() == operation)?;
        let known = &self.operations[index];
        let is_public = known.visibility() == Visibility::Public;
        let takes_nothing = known.takes_nothing();
        Some(Found { index, name: known.name(), kind: known.kind(), is_public, takes_nothing })
    }

    fn names(&self) -> Vec<&'static str> {
        let public =
            self.operations.iter().filter(|known| known.visibility() == Visibility::Public);
        public.map(OperationType::name).collect()
    }

    fn all_names(&self) -> Vec<&'static str> {
        let changes = |known: &&OperationType<E>| known.kind() != OperationKind::Query;
        self.operations.iter().filter(changes).map(OperationType::name).collect()
    }

    fn name_of(&self, index: usize) -> &'static str {
        self.operations[index].name()
    }

    fn check(&self, index: usize, input: &[u8]) -> Result<(), InputError> {
        self.operations[index].check(input)
    }

    fn fresh(&self) -> State {
        Box::new(E::default())
    }

    fn prove(&self, state: &State, stored: &[u8]) -> Result<(), String> {
        let state: &dyn Any = &**state;
        let state = state.downcast_ref::<E>().expect("a state of this type");
        self.checks.prove(state, stored)
    }

    fn prove_default(&self) -> Result<(), String> {
        // One that panics is met, and said, where an entity begins.
        let Ok(state) = catch_unwind(E::default) else { return Ok(()) };
        let stored = encode_state(&state).map_err(|error| error.to_string())?;
        Checks::all_of::<E>().prove(&state, &stored)
    }

    fn decode(&self, version: u32, bytes: &[u8]) -> Result<State, Damaged> {
        use stead_entities::entity::StateDecoder as _;
        let stored = StoredState(bytes);
        if version == E::VERSION {
            return Ok(Box::new(stored.decode::<E>()?));
        }
        Ok(Box::new(E::upgrade(version, stored)?))
    }

    fn run(&self, index: usize, state: &mut State, ctx: &mut Context, input: &[u8]) -> Outcome {
        let state = typed::<E>(state);
        match self.operations[index].body() {
            Body::Operation(body) => body(state, ctx, input),
            Body::Query(body) => body(state, ctx, input),
            Body::Async(_) => Outcome::Unencodable("an operation that awaits is started".into()),
        }
    }

    fn start(
        &self,
        index: usize,
        mut state: State,
        ctx: Context,
        input: &[u8],
    ) -> Result<Running, InputError> {
        let state = std::mem::take(typed::<E>(&mut state));
        let Body::Async(body) = self.operations[index].body() else {
            let outcome = Outcome::Unencodable("only an operation that awaits is started".into());
            let state: State = Box::new(state);
            return Ok(Box::pin(std::future::ready((state, ctx, outcome))));
        };
        let running = body(state, ctx, input)?;
        Ok(Box::pin(async move {
            let (state, ctx, outcome) = running.await;
            (Box::new(state) as State, ctx, outcome)
        }))
    }
}
