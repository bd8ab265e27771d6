//! A node beside an application's own routes: errors as answers, references out of paths, parts of the
//! surface, and typed reads.

use axum::{
    Json, Router,
    extract::FromRef,
    routing::{get, post},
};
use serde_json::{Value, json};
use stead::{EntityPath, Failure, Routes, stock::ApprovalWorkflow};

use super::*;

#[derive(Clone)]
struct App {
    node: Node,
}

impl FromRef<App> for Node {
    fn from_ref(app: &App) -> Self {
        app.node.clone()
    }
}

async fn append(EntityPath(journal): EntityPath<Journal>) -> Result<Json<u32>, CallError> {
    Ok(Json(journal.append(7).await?))
}

async fn refuse(EntityPath(journal): EntityPath<Journal>) -> Result<Json<()>, CallError> {
    Ok(Json(journal.refuse(7).await?))
}

async fn give_up() -> Result<(), Failure> {
    Err(Failure::retry("not today").after(Duration::from_secs(90)))
}

/// An answer's status, and its body as JSON.
async fn ask(url: &str, method: &str, path: &str) -> (u16, Value) {
    let method = method.parse().expect("a method");
    let request = reqwest::Client::new().request(method, format!("{url}{path}"));
    let answer = request.body("").send().await.expect("answered");
    let status = answer.status().as_u16();
    (status, serde_json::from_slice(&answer.bytes().await.expect("a body")).unwrap_or_default())
}

#[tokio::test]
async fn errors_and_rejections_are_answers_of_an_application_too() {
    let world = World::new();
    let node = world.start().await;
    let app = Router::new()
        .route("/journals/{key}", post(append))
        .route("/tenants/{tenant}/journals/{key}/refusal", post(refuse))
        .route("/given-up", get(give_up))
        .with_state(App { node: node.clone() });
    let (url, _served) = serve(app).await;
    assert_eq!(ask(&url, "POST", "/journals/a%2Fb").await, (200, json!(1)));
    assert_eq!(node.entity::<Journal>("a/b").entries().await.expect("a query"), [7]);
    let (status, told) = ask(&url, "POST", "/tenants/t/journals/a/refusal").await;
    assert_eq!((status, &told["type"]), (422, &json!("urn:stead:problem:rejected")));
    assert_eq!(told["detail"], "never");
    let long = "x".repeat(300);
    let (status, told) = ask(&url, "POST", &format!("/journals/{long}")).await;
    assert_eq!((status, &told["type"]), (400, &json!("urn:stead:problem:invalid")));
    let answer = reqwest::get(format!("{url}/given-up")).await.expect("answered");
    assert_eq!(answer.headers()["retry-after"], "90");
    assert_eq!(answer.status(), 503);
    node.abort().await;
}

#[tokio::test]
async fn a_router_shows_the_types_and_keys_and_methods_that_were_chosen() {
    let world = World::new();
    let node = world.start().await;
    for key in ["mine/1", "mine/2", "yours/1"] {
        node.entity::<Journal>(key).append(1).await.expect("applied");
    }
    let shown = Routes::new().entity::<Journal>().keys("mine/");
    let app = Router::new()
        .nest("/mine", node.router_of(shown.clone()))
        .nest("/read", node.router_of(shown.read_only()))
        .nest("/reads", node.router_of(Routes::new().read_only()));
    let (url, _served) = serve(app).await;
    let status = async |method: &str, path: &str| ask(&url, method, path).await.0;
    let entity = "v1/entities/journal";
    for (method, path, expected) in [
        ("GET", format!("/mine/{entity}/mine%2F1"), 200),
        ("POST", format!("/mine/{entity}/mine%2F1/calls/append"), 400),
        ("DELETE", format!("/mine/{entity}/mine%2F2"), 204),
        ("GET", format!("/mine/{entity}/yours%2F1"), 404),
        ("DELETE", format!("/mine/{entity}/yours%2F1"), 404),
        ("GET", format!("/mine/{entity}?prefix=mine/"), 200),
        ("GET", format!("/mine/{entity}?prefix=mine/&where=any:1"), 400),
        ("GET", format!("/mine/{entity}?prefix=mine/&order=any"), 400),
        ("GET", format!("/mine/{entity}"), 400),
        ("GET", format!("/mine/{entity}?prefix=your"), 400),
        ("GET", "/mine/v1/entities/counter/mine%2F1".into(), 404),
        ("GET", "/mine/v1/placement/journal/mine%2F1".into(), 200),
        ("GET", "/mine/v1/placement/journal/yours%2F1".into(), 404),
        ("GET", "/mine/v1/dead-letters".into(), 404),
        ("GET", "/mine/v1/cluster".into(), 404),
        ("GET", "/mine/livez".into(), 200),
        ("GET", "/mine/v1/entities?x=1".into(), 400),
        ("POST", "/mine/v1/entities".into(), 405),
        ("GET", format!("/read/{entity}/mine%2F1/queries/entries"), 200),
        ("POST", format!("/read/{entity}/mine%2F1/calls/append"), 405),
        ("DELETE", format!("/read/{entity}/mine%2F1"), 405),
        ("GET", "/reads/v1/dead-letters".into(), 200),
        ("DELETE", "/reads/v1/dead-letters?all=true".into(), 405),
        ("GET", format!("/reads/{entity}/yours%2F1"), 200),
    ] {
        assert_eq!(status(method, &path).await, expected, "{method} {path}");
    }
    let (_, types) = ask(&url, "GET", "/mine/v1/entities").await;
    assert_eq!(types["types"].as_array().map(Vec::len), Some(1));
    assert_eq!(types["types"][0]["name"], "journal");
    node.abort().await;
}

#[tokio::test]
async fn a_router_shows_the_workflows_that_were_chosen() {
    let world = World::new();
    let node = world.start_with(|builder| builder.workflow(ApprovalWorkflow)).await;
    let app = Router::new()
        .nest("/none", node.router_of(Routes::new().entity::<Journal>()))
        .nest("/mine", node.router_of(Routes::new().workflow::<ApprovalWorkflow>().keys("mine/")));
    let (url, _served) = serve(app).await;
    let status = async |method: &str, path: &str| ask(&url, method, path).await.0;
    let of = "v1/workflows/approval-workflow";
    for (method, path, expected) in [
        ("POST", format!("/none/{of}/mine%2F1"), 404),
        ("POST", format!("/mine/{of}/mine%2F1"), 202),
        ("POST", format!("/mine/{of}/yours%2F1"), 404),
        ("POST", format!("/mine/{of}/mine%2F1/restart?key=yours/1"), 404),
        ("POST", format!("/mine/{of}/mine%2F1/restart?key=mine/2"), 202),
        ("GET", format!("/mine/{of}/mine%2F2"), 200),
        ("POST", format!("/mine/{of}/mine%2F1/restart?key=.."), 404),
        ("GET", format!("/mine/{of}?prefix=mine/"), 200),
        ("GET", format!("/mine/{of}?prefix=mine/&status=running"), 400),
        ("GET", format!("/mine/{of}"), 400),
        ("GET", "/mine/runtime/webhooks/durabletask/instances".into(), 404),
    ] {
        assert_eq!(status(method, &path).await, expected, "{method} {path}");
    }
    let body = json!({ "key": "yours/1" }).to_string();
    let restart = reqwest::Client::new().post(format!("{url}/mine/{of}/mine%2F1/restart"));
    let answer = restart.body(body).send().await.expect("answered");
    assert_eq!(answer.status(), 404, "the key of a body too");
    let names = async |part: &str| ask(&url, "GET", &format!("/{part}/v1/workflows")).await.1;
    assert_eq!(names("none").await["types"], json!([]));
    assert_eq!(names("mine").await["types"][0]["name"], "approval-workflow");
    node.abort().await;
}

#[tokio::test]
async fn what_a_node_shows_is_typed() {
    let world = World::new();
    let node = world.start().await;
    for key in ["a/1", "a/2", "b"] {
        node.entity::<Journal>(key).append(5).await.expect("applied");
    }
    let snapshot = node.state::<Journal>("a/1").await.expect("readable").expect("a state");
    assert_eq!((snapshot.state.entries, snapshot.version.revision), (vec![5], 1));
    assert!(node.state::<Journal>("never").await.expect("readable").is_none());
    let listed = node.list::<Journal>("a/", None, 1).await.expect("a list");
    assert_eq!((listed.rows[0].key.as_str(), listed.next.as_deref()), ("a/1", Some("a/1")));
    assert_eq!(node.count::<Journal>("a/").await.expect("a count"), 2);
    assert_eq!(node.count::<Counter>("").await.expect("a count"), 0);
    node.entity::<Journal>("b").refuse(1).signal().await.expect("accepted");
    let of_journals = stead::DeadLetterFilter::of::<Journal>();
    let letters = async || node.dead_letters(&of_journals, None, 10).await.expect("a list").rows;
    until_true("it is a dead letter", async || letters().await.len() == 1).await;
    let of_counters = stead::DeadLetterFilter::of::<Counter>();
    assert_eq!(node.replay_all(&of_counters).await.expect("nothing").done, 0);
    assert_eq!(node.replay_all(&of_journals).await.expect("replayed").done, 1);
    node.abort().await;
}
