//! A real process, killed with SIGKILL under load: nothing that was acknowledged is missing, and
//! nothing is applied twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    process::Command,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use stead::{Client, stock::Counter, workflow::StartPolicy};
use stead_tests::{
    Server, command_of,
    events::{Follower, with_lengths},
    free_address,
    history::{History, Kind, compare},
    indexes,
    log::Log,
    programs::{Interpreter, Program},
    random::Random,
    wait::until,
    workflows::{TYPE, Workflows, asked},
};

const SENDERS: usize = 8;
const KILLS: usize = 8;

/// What one sender knows of its counter.
#[derive(Debug, Default, Clone, Copy)]
struct Known {
    acknowledged: i64,
    /// Sent without an answer: applied once or not at all.
    open: i64,
}

async fn send_until_gone(server: Arc<Server>, sender: usize, mut known: Known) -> Known {
    loop {
        let verb = if known.acknowledged % 2 == 0 { "calls" } else { "signals" };
        let path = format!("/v1/entities/counter/s{sender}/{verb}/add");
        match server.post(&path, "1").send().await {
            Ok(answer) if answer.status().is_success() => known.acknowledged += 1,
            Ok(_) => {}
            Err(_) => {
                known.open += 1;
                return known;
            }
        }
    }
}

#[tokio::test]
async fn what_was_acknowledged_survives_every_kill() -> Result<()> {
    let data = tempfile::tempdir()?;
    let mut known = [Known::default(); SENDERS];
    for kill in 0..KILLS {
        let server = Arc::new(Server::start(data.path(), &[]).await?);
        let tasks: Vec<_> = known
            .iter()
            .enumerate()
            .map(|(sender, known)| tokio::spawn(send_until_gone(server.clone(), sender, *known)))
            .collect();
        tokio::time::sleep(Duration::from_millis(40 + 37 * kill as u64)).await;
        server.kill_now()?;
        for (known, task) in known.iter_mut().zip(tasks) {
            *known = task.await?;
        }
    }
    let server = Server::start(data.path(), &[]).await?;
    for (sender, known) in known.iter().enumerate() {
        let path = format!("/v1/entities/counter/s{sender}/queries/value");
        let value: i64 = server.get(&path).send().await?.json().await?;
        let possible = known.acknowledged..=known.acknowledged + known.open;
        ensure!(possible.contains(&value), "sender {sender}: {value}, expected {possible:?}");
        ensure!(known.acknowledged > 0, "sender {sender} did nothing");
    }
    Ok(())
}

/// The examples print what their headers say.
#[test]
fn the_examples_print_what_they_say() -> Result<()> {
    let this = std::env::current_exe()?;
    let directory = this.parent().and_then(std::path::Path::parent).context("a directory")?;
    for (name, expected) in [
        ("counter", "1\n3\nthe state survives: 3\n"),
        (
            "inventory",
            "300 items, 60 of them short\n\
             short in the north, fewest first: item-000 (0), item-020 (0), item-040 (0)\n\
             the most in the south: item-299 (19 pieces)\n\
             after a delivery 57 are short, also when the program starts again\n",
        ),
        (
            "chaining",
            "measured 21.5 degrees in oslo\nthe program starts again\npublished: oslo: 70.7 F\n",
        ),
        ("fan_out", "40 pages have 780 words, at most 8 were counted at one time\n"),
        ("approval_workflow", "holiday-1: approved by kim\nholiday-2: nobody answered\n"),
        (
            "async_http",
            "POST /v1/workflows/thumbnails/album-1: 202, \
             Location: /v1/workflows/thumbnails/album-1\n\
             GET /v1/workflows/thumbnails/album-1: running\n\
             GET /v1/workflows/thumbnails/album-1?wait=30s: completed, 24 thumbnails\n",
        ),
        (
            "monitor",
            "the job was done at the 5th look\n\
             the next report is due at 07:00 in Europe/Oslo\n",
        ),
        ("aggregator", "250 readings in 3 averages: 50.5, 150.5, 225.5\n"),
        ("eternal", "the workflow counts to 3000 in more than one run, the entity to 3000\n"),
        (
            "saga",
            "60 trips, of which every one that failed was taken back: \
             0 bookings too many, 0 too few\n",
        ),
        (
            "order",
            "the first version runs\nthe second version is deployed\n\
             order-1 (version 1): paid 30, parcel-of-order-1 is on its way, 7 left\n\
             order-2 (version 2): paid 27, parcel-of-order-2 is on its way, 4 left\n",
        ),
        (
            "transfer",
            "60 transfers among 6 accounts, and 10 audits meanwhile: each of them saw 600\n",
        ),
        ("orders", "25 paid, 15 refused; 0 bolts and 75 nuts left; 25 payments booked\n"),
        (
            "approval",
            "requested: pending\ntwo seconds later: escalated\n\
             too late: rejected: the approval is escalated\n",
        ),
    ] {
        let output = Command::new(directory.join(name)).output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let failed = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() && said == expected, "{name}: {said}{failed}");
    }
    Ok(())
}

/// The permits replay ends without a difference, for fixed seeds, in both of its forms.
#[test]
fn the_permits_replay_ends_without_a_difference() -> Result<()> {
    let this = std::env::current_exe()?;
    let directory = this.parent().and_then(std::path::Path::parent).context("a directory")?;
    for (form, seed) in
        [("entities", "7"), ("entities", "8"), ("workflows", "7"), ("workflows", "8")]
    {
        let mut command = Command::new(directory.join("permits"));
        command.args(["drive", "--kills", "12", "--seed", seed, "--form", form]);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let failed = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{form}, seed {seed}: {said}{failed}");
        ensure!(said.contains("no difference: 8577 events"), "{form}, seed {seed}: {said}");
    }
    Ok(())
}

/// Workflows of random programs, across kills: everything that they begin comes to what it must, once.
#[tokio::test]
async fn workflows_come_to_what_they_must_across_every_kill() -> Result<()> {
    let (data, outside) = (tempfile::tempdir()?, tempfile::NamedTempFile::new()?);
    let start = async || {
        let address = free_address()?;
        let mut command = command_of("unruly", data.path(), address, &["--idle", "0.05"])?;
        command.env("STEPS", outside.path()).env("READY_MADE", "yes");
        Server::run(command, address).await
    };
    let workflows = Workflows::new(outside.path().into(), Duration::from_millis(300));
    let mut random = Random(1);
    for kill in 0..KILLS as u64 {
        let server = start().await?;
        let client = Client::new(&format!("http://{}", server.address()))?;
        let acting = async {
            for number in 0.. {
                let any = |_: &mut Random, key: &str| Some(client.instance(TYPE, key));
                workflows.act(&mut random, &format!("w{kill}-{number}"), any).await;
            }
        };
        let _killed = tokio::time::timeout(Duration::from_millis(100 + 40 * kill), acting).await;
        server.kill_now()?;
    }
    let server = start().await?;
    let client = Client::new(&format!("http://{}", server.address()))?;
    let any = |key: &str| client.instance(TYPE, key);
    let open = workflows.end(any, Duration::from_secs(90)).await;
    ensure!(open.is_empty(), "{open:#?}");
    let count = async |key| client.entity::<Counter>(key).value().await;
    let wrong = workflows.compare(any, count, Duration::from_secs(1)).await;
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(workflows.len() > 40 && workflows.attempts() > 40, "too little was done");
    Ok(())
}

/// How many workflows are under way at one time.
const MANY: usize = 10_000;

/// Starts all of these, each as two callers do, until the server is gone.
async fn start_all(client: Client, keys: Vec<usize>, acknowledged: Arc<Mutex<BTreeSet<usize>>>) {
    for number in keys {
        let sleep = Program::Sleep(100 + number as u32 % 3_000);
        let steps = [0, 1].map(|step| Program::Caught(Box::new(Program::Step(step))));
        let [first, last] = steps;
        let program = Program::InOrder(vec![first, sleep, last]);
        let instance = client.instance(TYPE, &format!("m{number}"));
        for _ in 0..2 {
            let start = instance.start_of::<Interpreter>(&(program.clone(), 1));
            if start.policy(StartPolicy::Once).await.is_err() {
                return;
            }
        }
        acknowledged.lock().expect("no panic").insert(number);
    }
}

/// Many workflows in steps, between attempts of them and in timers: they go on across kills, and nobody asks for that.
#[tokio::test]
async fn many_workflows_go_on_across_kills_with_nobody_who_asks() -> Result<()> {
    let (data, outside) = (tempfile::tempdir()?, tempfile::NamedTempFile::new()?);
    let start = async || {
        let address = free_address()?;
        let mut command = command_of("unruly", data.path(), address, &[])?;
        command.env("STEPS", outside.path());
        Server::run(command, address).await
    };
    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    let open = || {
        let acknowledged = acknowledged.lock().expect("no panic");
        (0..MANY).filter(|number| !acknowledged.contains(number)).collect::<Vec<_>>()
    };
    let mut kills = 0;
    while !open().is_empty() {
        let server = start().await?;
        let client = Client::new(&format!("http://{}", server.address()))?;
        let open = open();
        let parts = open.chunks(open.len().div_ceil(32));
        let mut starting: tokio::task::JoinSet<_> = parts
            .map(|part| start_all(client.clone(), part.to_vec(), acknowledged.clone()))
            .collect();
        let all = async { while starting.join_next().await.is_some() {} };
        let _killed = tokio::time::timeout(Duration::from_millis(700), all).await;
        server.kill_now()?;
        kills += 1;
        ensure!(kills < 100, "{} are not started", open.len());
    }
    for pause in [300, 900] {
        let server = start().await?;
        tokio::time::sleep(Duration::from_millis(pause)).await;
        server.kill_now()?;
    }
    let server = start().await?;
    let get = async |path: String| -> Result<serde_json::Value> {
        Ok(server.get(&path).send().await?.json().await?)
    };
    let path = format!("/v1/workflows/{TYPE}");
    let ended = async || {
        for status in ["pending", "running"] {
            let page = get(format!("{path}?status={status}&limit=1")).await?;
            if page["workflows"] != serde_json::json!([]) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    };
    until("all have ended", ended).await?;
    let (mut keys, mut after) = (BTreeSet::new(), String::new());
    while keys.len() < MANY {
        let page = get(format!("{path}?status=completed&limit=1000{after}")).await?;
        for row in page["workflows"].as_array().with_context(|| page.to_string())? {
            keys.insert(row["key"].as_str().context("a key")?.to_owned());
        }
        after = page["next"].as_str().map(|next| format!("&after={next}")).unwrap_or_default();
        ensure!(keys.len() == MANY || !after.is_empty(), "{} are there", keys.len());
    }
    for key in keys.iter().step_by(100) {
        let status = get(format!("{path}/{key}")).await?;
        ensure!(status["run"] == 1 && status["status"] == "completed", "{key}: {status}");
    }
    let tokens = asked(outside.path());
    let asked_else = tokens.iter().find(|(_, tokens)| tokens.len() != 2);
    ensure!(tokens.len() == MANY && asked_else.is_none(), "{}: {asked_else:?}", tokens.len());
    Ok(())
}

/// What entities send, ask, refuse, give up, put off, let expire and repeat, across kills: everything comes to
/// what it must, once.
#[tokio::test]
async fn what_entities_do_among_themselves_survives_every_kill() -> Result<()> {
    let data = tempfile::tempdir()?;
    let (mut random, history) = (Random(1), Arc::new(Mutex::new(History::default())));
    let lock = |history: &Mutex<History>| history.lock().expect("no panic").clone();
    let mut followers = [Follower::new("log"), Follower::new("ember")];
    let mut entry = 0;
    for kill in 0..KILLS as u64 {
        let server = unruly(data.path()).await?;
        let url = format!("http://{}", server.address());
        let client = Client::new(&url)?;
        let following = tokio::spawn(follow_until_gone(followers, url));
        let mut senders = tokio::task::JoinSet::new();
        for _ in 0..40 {
            let key = format!("e{}", random.below(5));
            let others: Vec<_> = (0..3).map(|_| format!("e{}", random.below(5))).collect();
            let kind =
                [Kind::Tell, Kind::Remind, Kind::Ask, Kind::Stumble][random.below(4) as usize];
            entry += 1;
            let mut known = history.lock().expect("no panic");
            known.sent.insert((key.clone(), entry), kind);
            known.delayed.insert(entry, others[0].clone());
            known.asked.insert(entry, others.clone());
            let (log, history) = (client.entity::<Log>(&key), history.clone());
            senders.spawn(async move {
                let operation = match kind {
                    Kind::Tell => log.tell(entry, others),
                    Kind::Remind => log.remind(entry, others[0].clone()),
                    Kind::Ask => log.ask(entry, others),
                    Kind::Append | Kind::Stumble => log.stumble(entry, others[0].clone()),
                };
                if operation.deadline(Duration::from_millis(300)).await.is_ok() {
                    history.lock().expect("no panic").acknowledged.insert((key, entry));
                }
            });
        }
        tokio::time::sleep(Duration::from_millis(20 + 40 * kill)).await;
        server.kill_now()?;
        senders.join_all().await;
        followers = following.await?;
    }
    let server = unruly(data.path()).await?;
    let client = Client::new(&format!("http://{}", server.address()))?;
    let settled = async || {
        let mut logs = BTreeMap::new();
        for number in 0..5 {
            let key = format!("e{number}");
            logs.insert(key.clone(), client.entity::<Log>(&key).all().await?);
        }
        let wrong = compare(&lock(&history), &logs);
        let embers: serde_json::Value =
            server.get("/v1/entities/ember").send().await?.json().await?;
        let is_right = wrong.is_empty() && embers["entities"] == serde_json::json!([]);
        Ok(is_right.then_some(()))
    };
    until("everything has come to what it must", settled).await?;
    know_all(followers, &server, &client).await?;
    let get = async |path: &str| Ok(server.get(path).send().await?.json().await?);
    let wrong = indexes::differences(get).await?;
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(lock(&history).acknowledged.len() > 40, "too little was acknowledged");
    Ok(())
}

/// Has each follower take in what a server tells, until that is gone.
async fn follow_until_gone(followers: [Follower; 2], url: String) -> [Follower; 2] {
    let [mut logs, mut embers] = followers;
    // They end with an error where the server is killed before it answers.
    let _ended = tokio::join!(logs.follow(&url, false), embers.follow(&url, false));
    [logs, embers]
}

/// Each follower knows what there is: five logs, and no ember.
async fn know_all(
    [mut logs, mut embers]: [Follower; 2],
    server: &Server,
    client: &Client,
) -> Result<()> {
    for follower in [&mut logs, &mut embers] {
        follower.follow(&format!("http://{}", server.address()), true).await?;
        ensure!(follower.wrong.is_empty(), "{:#?}", follower.wrong);
    }
    let mut present = BTreeMap::new();
    for key in (0..5).map(|number| format!("e{number}")) {
        let log = serde_json::to_value(client.entity::<Log>(&key).all().await?)?;
        present.insert(key, with_lengths(log));
    }
    ensure!(logs.states() == present, "{logs:#?}, and there is {present:#?}");
    ensure!(embers.states().is_empty(), "{embers:#?}");
    Ok(())
}

async fn unruly(data: &std::path::Path) -> Result<Server> {
    let address = free_address()?;
    Server::run(command_of("unruly", data, address, &[])?, address).await
}

/// The outcomes of repeated keys, across kills: each key is applied exactly once.
#[tokio::test]
async fn a_key_that_is_repeated_across_kills_is_applied_once() -> Result<()> {
    let data = tempfile::tempdir()?;
    let mut answers: BTreeMap<usize, String> = BTreeMap::new();
    for round in 0..4 {
        let server = Server::start(data.path(), &[]).await?;
        for key in 0..20 {
            let path = "/v1/entities/counter/k/calls/add";
            let request = server.post(path, "1").header("idempotency-key", format!("key-{key}"));
            let answer = request.send().await?.text().await?;
            let first = answers.entry(key).or_insert_with(|| answer.clone());
            ensure!(*first == answer, "round {round}, key {key}: {answer}, first {first}");
        }
        server.kill()?;
    }
    let server = Server::start(data.path(), &[]).await?;
    let value = server.get("/v1/entities/counter/k/queries/value").send().await?.text().await?;
    ensure!(value == "20", "{value}");
    Ok(())
}
