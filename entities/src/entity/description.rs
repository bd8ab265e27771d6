//! Entity types in words and schemas.

use schemars::{Schema, SchemaGenerator, generate::SchemaSettings};
use serde::Serialize;

use super::{Entity, OperationKind, Visibility};
use crate::{Policy, index::IndexDescription, policy::Durability};

/// An entity type in words and schemas, as `GET /v1/entities` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct EntityDescription {
    /// The name of the type.
    pub name: &'static str,
    /// The version of its state's layout.
    pub version: u32,
    /// Its documentation.
    pub description: &'static str,
    /// How safe an answer is.
    pub durability: Durability,
    /// The policy of its operations and entities: what it sets, and what the node does.
    pub policy: Policy,
    /// JSON Schema (2020-12) of the state.
    pub state: Schema,
    /// The indexes by which its entities are found.
    pub indexes: Vec<IndexDescription>,
    /// The public operations and queries.
    pub operations: Vec<OperationDescription>,
}

/// One operation in words and schemas.
#[derive(Debug, Clone, Serialize)]
pub struct OperationDescription {
    /// The name.
    pub name: &'static str,
    /// Its documentation.
    pub description: &'static str,
    /// Its kind.
    pub kind: OperationKind,
    /// Its policy: what it sets, or else its type, or else the node. `null` for a query.
    pub policy: Option<Policy>,
    /// JSON Schema (2020-12) of the argument; `null` where there is none.
    pub input: Schema,
    /// JSON Schema (2020-12) of the result.
    pub output: Schema,
    /// JSON Schema (2020-12) of the details of its rejections; `null` where it declares none.
    pub rejection: Option<Schema>,
}

impl EntityDescription {
    /// Describes `E` under the policy of a node. Each schema stands for itself: its definitions are inside.
    pub fn of<E: Entity>(node: Policy) -> Self {
        let policy = E::policy().or(node);
        let operations = E::operations()
            .iter()
            .filter(|operation| operation.visibility == Visibility::Public)
            .map(|operation| OperationDescription {
                name: operation.name,
                description: operation.description,
                kind: operation.kind(),
                policy: (operation.kind() != OperationKind::Query)
                    .then(|| operation.policy.or(policy).of_operation()),
                input: whole_schema(&operation.input_schema),
                output: whole_schema(&operation.output_schema),
                rejection: operation.details_schema.as_ref().map(|details| whole_schema(details)),
            })
            .collect();
        Self {
            name: E::NAME,
            version: E::VERSION,
            description: E::DESCRIPTION,
            durability: policy.durability.unwrap_or_default(),
            policy,
            state: whole_schema(&|generator| generator.subschema_for::<E>()),
            indexes: E::indexes().iter().map(IndexDescription::from).collect(),
            operations,
        }
    }
}

/// A schema that stands for itself: its definitions are inside.
pub(crate) fn whole_schema(schema: &dyn Fn(&mut SchemaGenerator) -> Schema) -> Schema {
    let mut settings = SchemaSettings::draft2020_12();
    settings.inline_subschemas = false;
    let mut generator = settings.into_generator();
    let mut schema = schema(&mut generator);
    let definitions = generator.take_definitions(true);
    if !definitions.is_empty() {
        schema.insert("$defs".into(), definitions.into());
    }
    schema
}
