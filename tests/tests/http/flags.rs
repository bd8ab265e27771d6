//! Flags and the environment, through the program.

use std::process::Command;

use anyhow::Result;
use stead_tests::{Server, binary, command, free_address};

use super::ADD;

#[tokio::test]
async fn an_empty_variable_is_none_and_a_flag_overrides_what_it_excludes() -> Result<()> {
    let nobody = format!("postgres://stead@{}/stead", free_address()?);
    let cluster = [("STEAD_STORE", nobody.as_str()), ("STEAD_PEER_LISTEN", "127.0.0.1:0")];
    let empty = [
        "STEAD_DATA",
        "STEAD_STORE",
        "STEAD_LISTEN",
        "STEAD_NODE_ID",
        "STEAD_PEER_LISTEN",
        "STEAD_PEER_ADDRESS",
        "STEAD_CLUSTER_SECRET_FILE",
        "STEAD_WEIGHT",
        "STEAD_UNSAFE_DURABILITY",
        "STEAD_LEASE",
        "STEAD_RETRIES",
        "STEAD_LOG",
        "STEAD_FREE_BYTES_MIN",
        "STEAD_IDLE_CONNECTION",
    ];
    let rows: [Vec<(&str, &str)>; 5] = [
        empty.map(|name| (name, "")).into(),
        vec![("STEAD_STORE", nobody.as_str()), ("STEAD_DATA", "/nowhere")],
        cluster.into(),
        vec![("STEAD_UNSAFE_DURABILITY", "0"), ("STEAD_LISTEN", "nonsense")],
        vec![("STEAD_UNSAFE_DURABILITY", "maybe"), ("STEAD_STORE", nobody.as_str())],
    ];
    for variables in rows {
        let data = tempfile::tempdir()?;
        let address = free_address()?;
        let mut command = command(data.path(), address, &[])?;
        command.envs(variables.clone());
        let server = Server::run(command, address).await?;
        assert_eq!(server.call(ADD, "1").await?, 1, "{variables:?}");
    }
    Ok(())
}

#[test]
fn a_flag_for_a_database_overrides_a_directory_in_the_environment() -> Result<()> {
    let nobody = format!("postgres://stead@{}/stead", free_address()?);
    let serve = || {
        anyhow::Ok({
            let mut command = Command::new(binary("stead")?);
            command.args(["serve", "--listen", "127.0.0.1:0"]);
            command
        })
    };
    let flag = serve()?.env("STEAD_DATA", "d").args(["--store", &nobody]).output()?;
    let said = String::from_utf8_lossy(&flag.stderr).into_owned();
    assert_eq!(flag.status.code(), Some(1), "{said}");
    assert!(said.contains("the database cannot be reached"), "{said}");
    let both = serve()?.env("STEAD_DATA", "d").env("STEAD_STORE", &nobody).output()?;
    let said = String::from_utf8_lossy(&both.stderr).into_owned();
    assert_eq!(both.status.code(), Some(2), "{said}");
    assert!(said.contains("set by the environment: STEAD_DATA, STEAD_STORE"), "{said}");
    assert!(!said.contains(&nobody), "an address may have a password: {said}");
    Ok(())
}

#[tokio::test]
async fn the_other_verbs_and_the_log_read_the_environment_in_the_same_way() -> Result<()> {
    let data = tempfile::tempdir()?;
    let server = Server::start(data.path(), &[]).await?;
    let url = format!("http://{}", server.address());
    let cluster = |variable: &str, flags: &[&str]| {
        let mut command = Command::new(binary("stead")?);
        anyhow::Ok(command.arg("cluster").args(flags).env("STEAD_URL", variable).output()?)
    };
    assert_eq!(cluster(&url, &[])?.status.code(), Some(0));
    assert_eq!(cluster(&format!(" {url}\n"), &[])?.status.code(), Some(0));
    assert_eq!(cluster("nonsense", &["--url", &url])?.status.code(), Some(0));
    assert_eq!(cluster("", &["--url", &url])?.status.code(), Some(0));
    // Nobody may listen there, but it is no wrong URL.
    let usual = cluster("", &[])?;
    assert!(!String::from_utf8_lossy(&usual.stderr).contains("is not the URL"));
    for (filter, said) in [("", "in use"), ("a=b=c", "RUST_LOG=\"a=b=c\" counts as not set")] {
        let second =
            command(data.path(), free_address()?, &[])?.env("RUST_LOG", filter).output()?;
        let log = String::from_utf8_lossy(&second.stderr).into_owned();
        assert!(log.contains(said), "{filter:?}: {log}");
    }
    Ok(())
}
