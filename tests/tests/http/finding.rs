//! Entities found over HTTP by the indexes of the ready-made ones.

use serde_json::{Value, json};

use super::*;

async fn get(server: &Server, path: &str) -> Result<Value> {
    Ok(server.get(path).send().await?.json().await?)
}

fn keys(page: &Value) -> Vec<&str> {
    let rows = page["entities"].as_array().expect("a list");
    rows.iter().filter_map(|row| row["key"].as_str()).collect()
}

#[tokio::test]
async fn approvals_are_found_by_status_and_approver_through_a_kill() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    for (key, approver) in [("a", "kim"), ("b", "kim"), ("c", "ann, b"), ("d/e", "lee")] {
        let path = format!("/v1/entities/approval/{}/calls/request", key.replace('/', "%2F"));
        let request = json!({ "approver": approver, "timeout": "PT24H" });
        assert_eq!(server.post(&path, request.to_string()).send().await?.status(), 200);
    }
    let approve = server.post("/v1/entities/approval/b/calls/approve", "\"kim\"");
    assert_eq!(approve.send().await?.status(), 200);
    server.kill()?;
    let server = Server::start(data.path(), &[]).await?;
    let list = "/v1/entities/approval";
    let page = get(&server, &format!("{list}?where=status:pending,approver:kim")).await?;
    assert_eq!(keys(&page), ["a"]);
    assert_eq!(page["next"], Value::Null);
    let page = get(&server, &format!("{list}?where=approver:%22ann,%20b%22")).await?;
    assert_eq!(keys(&page), ["c"]);
    let page =
        get(&server, &format!("{list}?where=status:pending&order=-approver&limit=2")).await?;
    assert_eq!(keys(&page), ["d/e", "a"]);
    let next = page["next"].as_str().expect("more");
    let more = format!("{list}?where=status:pending&order=-approver&limit=2&after={next}");
    let page = get(&server, &more).await?;
    assert_eq!((keys(&page), &page["next"]), (vec!["c"], &Value::Null));
    let page = get(&server, &format!("{list}?where=approver:kim,status:p*&count=only")).await?;
    assert_eq!(page, json!({ "count": 1 }));
    let page = get(&server, &format!("{list}?where=approver:lee&select=status,settled_by")).await?;
    assert_eq!(page["entities"][0]["state"], json!({ "status": "pending", "settled_by": null }));
    assert_eq!(page["entities"][0]["revision"], 1);
    let gone = server.delete("/v1/entities/approval/a").send().await?;
    assert_eq!(gone.status(), 204);
    let page = get(&server, &format!("{list}?where=approver:kim&prefix=b")).await?;
    assert_eq!(keys(&page), ["b"]);
    let types = get(&server, "/v1/entities").await?;
    let counter =
        types["types"].as_array().and_then(|all| all.iter().find(|it| it["name"] == "counter"));
    let indexes = counter.map(|counter| &counter["indexes"]);
    assert_eq!(indexes, Some(&json!([{ "name": "value", "values": "integer" }])));
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_found_is_400_with_what_there_is() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    for key in ["a", "b"] {
        server.call(&format!("/v1/entities/counter/{key}/calls/add"), "1").await?;
    }
    for (query, detail) in [
        ("where=size:1", "has no index \"size\"; there are: value (integer)"),
        ("where=value:abc", "\"abc\" is no value of it"),
        ("where=value:>=\"5\"", "is no value of it"),
        ("where=value:5*", "asks for texts"),
        ("where=value", "is no filter"),
        ("where=", "there is no filter"),
        ("where=value:1&order=size", "has no index \"size\""),
        ("where=value:1&select=size", "has no field \"size\"; there are: value"),
        ("where=value:1&count=all", "count is only"),
        ("where=value:1&count=only&select=value", "either `count` or `select`"),
        ("select=value", "give `where` or `order`"),
        ("where=value:1&after=a", "the `next` of a page of the same search"),
        ("where=value:1&limit=0", "limit is 1 to 1000"),
        ("filter=value:1", "unknown parameter filter"),
    ] {
        let query = query.replace('"', "%22").replace('>', "%3E");
        let asked = server.get(&format!("/v1/entities/counter?{query}")).send().await?;
        let (status, slug, said) = problem(asked).await?;
        assert_eq!((status, slug.as_str()), (400, "invalid"), "{query}: {said}");
        assert!(said.contains(detail), "{query}: {said}");
    }
    // A cursor of one store is none of another.
    let page = get(&server, "/v1/entities/counter?where=value:1&limit=1").await?;
    let next = page["next"].as_str().expect("more");
    let elsewhere = tempfile::tempdir()?;
    let other = Server::start(elsewhere.path(), &[]).await?;
    let path = format!("/v1/entities/counter?where=value:1&limit=1&after={next}");
    assert_eq!(keys(&get(&server, &path).await?), ["b"]);
    let (status, slug, _) = problem(other.get(&path).send().await?).await?;
    assert_eq!((status, slug.as_str()), (400, "invalid"));
    let unknown = server.get("/v1/entities/nothing?where=a:1").send().await?;
    assert_eq!(problem(unknown).await?.0, 404);
    Ok(())
}
