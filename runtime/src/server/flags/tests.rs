use super::*;

/// What the command line and the environment, both without their common parts, come to.
fn read(environment: &[(&str, &str)], arguments: &[&str]) -> Result<Verb, clap::Error> {
    let all: Vec<_> = ["stead"].iter().chain(arguments).map(OsString::from).collect();
    let variable = |name: &str| {
        let found = environment.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| OsString::from(value))
    };
    Command::read(&all, variable).map(|command| command.verb)
}

fn serve(environment: &[(&str, &str)], flags: &[&str]) -> Result<Serve, clap::Error> {
    let arguments: Vec<_> = ["serve"].iter().chain(flags).copied().collect();
    match read(environment, &arguments)? {
        Verb::Serve(settings) => Ok(*settings),
        other => panic!("{other:?}"),
    }
}

/// Where the data is, and who the peers are: `data`, `store`, `peer_listen`, `peer_address`, secret.
fn place(settings: &Serve) -> String {
    let store = settings.store.as_deref().unwrap_or("-");
    let peers = settings.peer_listen.as_ref().map_or("-".into(), ToString::to_string);
    let address = settings.peer_address.as_deref().unwrap_or("-");
    let secret =
        settings.cluster_secret_file.as_deref().map_or("-".into(), |it| it.to_string_lossy());
    let data = settings.data.display();
    let unsafe_durability = if settings.unsafe_durability { " unsafe" } else { "" };
    format!("{data} {store} {peers} {address} {secret}{unsafe_durability}")
}

/// An environment, flags, and what they come to.
type Row<'r> = (&'r [(&'r str, &'r str)], &'r [&'r str], &'r str);

const STORE: (&str, &str) = ("STEAD_STORE", "pg://env");
const DATA: (&str, &str) = ("STEAD_DATA", "env");
const PEERS: (&str, &str) = ("STEAD_PEER_LISTEN", "n:1");
const ADDRESS: (&str, &str) = ("STEAD_PEER_ADDRESS", "a:1");
const SECRET: (&str, &str) = ("STEAD_CLUSTER_SECRET_FILE", "s");
const NODE: (&str, &str) = ("STEAD_NODE_ID", "n");
const UNSAFE: (&str, &str) = ("STEAD_UNSAFE_DURABILITY", "yes");

#[test]
fn a_variable_counts_where_no_flag_says_otherwise() {
    let member = [STORE, PEERS, ADDRESS, SECRET, NODE, UNSAFE];
    let member_and_data = [STORE, PEERS, ADDRESS, SECRET, NODE, UNSAFE, DATA];
    let rows: [Row; 24] = [
        (&[], &[], "data - - - -"),
        (&[DATA], &[], "env - - - -"),
        (&[DATA], &["--data", "d"], "d - - - -"),
        (&[STORE], &[], "data pg://env - - -"),
        (&[STORE], &["--store=pg://f"], "data pg://f - - -"),
        // Empty, or nothing but white space.
        (&[("STEAD_STORE", "")], &["--data", "d"], "d - - - -"),
        (&[("STEAD_STORE", " \n"), DATA], &[], "env - - - -"),
        (&[("STEAD_DATA", "")], &[], "data - - - -"),
        (&[("STEAD_DATA", ""), STORE], &[], "data pg://env - - -"),
        (&[("STEAD_PEER_LISTEN", ""), ("STEAD_CLUSTER_SECRET_FILE", "")], &[], "data - - - -"),
        (&[("STEAD_STORE", " pg://env\n")], &[], "data pg://env - - -"),
        // A flag for data in a directory silences what is for a database, and the other way round.
        (&[STORE], &["--data", "d"], "d - - - -"),
        (&[DATA], &["--store", "pg://f"], "data pg://f - - -"),
        (&member, &[], "data pg://env n:1 a:1 s unsafe"),
        (&member, &["--data=d"], "d - - - -"),
        (&member_and_data, &["--data", "d"], "d - - - -"),
        (&member_and_data, &["--store", "pg://f"], "data pg://f n:1 a:1 s unsafe"),
        (&member_and_data, &["--peer-listen", ":7"], "data pg://env :7 a:1 s unsafe"),
        (&member_and_data, &["--peer-address", "b:2"], "data pg://env n:1 b:2 s unsafe"),
        (&member_and_data, &["--cluster-secret-file", "t"], "data pg://env n:1 a:1 t unsafe"),
        (&[STORE, DATA], &["--unsafe-durability"], "data pg://env - - - unsafe"),
        // Switched off, a switch chooses nothing.
        (&[UNSAFE, STORE], &["--unsafe-durability=false"], "data pg://env - - -"),
        (&[STORE], &["--unsafe-durability=false", "--data", "d"], "d - - - -"),
        (&[DATA], &["--unsafe-durability=false"], "env - - - -"),
    ];
    for (environment, flags, expected) in rows {
        let settings = serve(environment, flags);
        let settings = settings.unwrap_or_else(|no| panic!("{environment:?} {flags:?}: {no}"));
        assert_eq!(place(&settings), expected, "{environment:?} {flags:?}");
    }
}

#[test]
fn what_excludes_or_needs_something_is_refused_where_it_was_said_in_the_same_way() {
    let rows: [Row; 14] = [
        (&[], &["--data", "d", "--store", "pg://f"], "cannot be used with"),
        (&[DATA], &["--data", "d", "--store", "pg://f"], "cannot be used with"),
        (&[DATA, STORE], &[], "set by the environment: STEAD_DATA, STEAD_STORE"),
        (&[], &["--peer-listen", "n:1"], "--store <URL>"),
        (&[DATA], &["--peer-listen", "n:1"], "--store <URL>"),
        (&[STORE], &["--peer-listen", "n:1"], "--cluster-secret-file <FILE>"),
        (&[STORE, NODE, SECRET], &["--peer-listen", "n:1", "--data=d"], "--store <URL>"),
        (&[PEERS], &[], "set by the environment: STEAD_PEER_LISTEN"),
        (&[SECRET], &[], "--peer-listen <PLACE>"),
        (&[], &["--peer-address", "a:1"], "--peer-listen <PLACE>"),
        (&[], &["--unsafe-durability"], "--store <URL>"),
        (&[UNSAFE], &[], "--store <URL>"),
        (&[("STEAD_UNSAFE_DURABILITY", "maybe"), STORE], &[], "invalid value 'maybe'"),
        (&[], &["--data", "d", "--data", "e"], "cannot be used multiple times"),
    ];
    for (environment, flags, expected) in rows {
        let error = serve(environment, flags).map(|settings| place(&settings));
        let error = error.expect_err(&format!("{environment:?} {flags:?}"));
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(expected), "{environment:?} {flags:?}: {error}");
    }
}

#[test]
fn a_switch_is_off_where_its_variable_says_no() {
    for off in ["", " ", "0", "false", "False", "no", "NO", "off", "n", "f"] {
        // Alone too: what is off needs no database.
        for others in [&[][..], &[STORE]] {
            let environment = [&[("STEAD_UNSAFE_DURABILITY", off)], others].concat();
            let settings = serve(&environment, &[]);
            assert!(!settings.expect("off").unsafe_durability, "{off:?}");
        }
    }
    for on in ["1", "true", "TRUE", "yes", "y", "on", "t", " true "] {
        let settings = serve(&[("STEAD_UNSAFE_DURABILITY", on), STORE], &[]).expect("on");
        assert!(settings.unsafe_durability, "{on:?}");
    }
}

#[test]
fn a_value_that_is_not_used_need_not_be_right() {
    for (name, value, flag) in [
        ("STEAD_LISTEN", "nonsense", "--listen=:1"),
        ("STEAD_RETRIES", "many", "--retries=1"),
        ("STEAD_WEIGHT", "65", "--weight=1"),
        ("STEAD_LEASE", "-1", "--lease=1"),
        ("STEAD_IDLE_CONNECTION", "0", "--idle-connection=0.5"),
        ("STEAD_LOG", "loud", "--log=json"),
        ("STEAD_BODY_BYTES_MAX", "1 MB", "--body-bytes-max=1"),
    ] {
        assert!(serve(&[(name, value)], &[flag]).is_ok(), "{name}");
        let error = serve(&[(name, value)], &[]).map(|_| ()).expect_err(name).to_string();
        assert!(error.contains("invalid value") && error.contains(name), "{name}: {error}");
        assert!(serve(&[(name, "")], &[]).is_ok(), "{name} is empty");
    }
    let unused = [("STEAD_PEER_LISTEN", "nonsense"), STORE];
    assert!(serve(&unused, &["--data", "d"]).is_ok(), "silenced");
}

#[test]
fn every_flag_has_its_variable() {
    let command = Command::command();
    for verb in command.get_subcommands() {
        for flag in verb.get_arguments().filter(|flag| flag.get_long().is_some()) {
            let long = flag.get_long().unwrap_or_default();
            // The form of what is printed is asked for each time.
            if matches!(long, "help" | "version" | "json") {
                continue;
            }
            let expected = format!("STEAD_{}", long.replace('-', "_").to_uppercase());
            assert_eq!(flag.get_env(), Some(OsStr::new(&expected)), "--{long}");
        }
    }
}

#[test]
fn the_other_verbs_read_their_server_from_the_environment_too() {
    let url = |environment: &[(&str, &str)], arguments: &[&str]| match read(environment, arguments)
    {
        Ok(
            Verb::Cluster { server }
            | Verb::Placement { server, .. }
            | Verb::Upgrade { server, .. },
        ) => server.url,
        Ok(Verb::Replay(asked)) => asked.shown.server.url,
        other => panic!("{other:?}"),
    };
    let (usual, given) = ("http://127.0.0.1:8080", ("STEAD_URL", "http://h:1"));
    for verb in [
        &["cluster"][..],
        &["upgrade"],
        &["replay"],
        &["upgrade", "counter"],
        &["placement", "counter", "k"],
        &["placement", "--", "c", "--k"],
    ] {
        assert_eq!(url(&[], verb), usual);
        assert_eq!(url(&[("STEAD_URL", "")], verb), usual);
        assert_eq!(url(&[given], verb), "http://h:1");
        let typed = [&verb[..1], &["--url", "http://f:2"], &verb[1..]].concat();
        assert_eq!(url(&[given], &typed), "http://f:2");
    }
}

#[test]
fn help_names_the_variables_and_needs_none_of_them_to_be_right() {
    for arguments in [&["serve", "--help"][..], &["help", "serve"]] {
        let help = read(&[("STEAD_RETRIES", "many")], arguments).expect_err("help");
        assert_eq!(help.kind(), ErrorKind::DisplayHelp, "{help}");
        for name in ["STEAD_IDLE_CONNECTION", "STEAD_STORE", "STEAD_UNSAFE_DURABILITY"] {
            assert!(help.to_string().contains(name), "{name}: {help}");
        }
    }
    for wrong in [&["--listen"][..], &["frob"], &[], &["serve", "--frob"]] {
        assert_eq!(read(&[STORE, DATA], wrong).expect_err("wrong").exit_code(), 2, "{wrong:?}");
    }
}

#[test]
fn an_empty_or_wrong_log_filter_is_the_usual_one() {
    let filter = |asked: &str| {
        let (filter, problem) = log_filter(Some(OsStr::new(asked)));
        (filter.to_string(), problem.is_some())
    };
    let usual = log_filter(None).0.to_string();
    assert!(usual.contains("info"), "{usual}");
    assert_eq!(filter(""), (usual.clone(), false));
    assert_eq!(filter(" "), (usual.clone(), false));
    assert_eq!(filter("info,a=b=c"), (usual, true));
    assert_eq!(filter("debug"), ("debug".to_owned(), false));
}
