//! `testing::Driver` and `testing::Drivers` from outside.

use std::{
    pin::pin,
    task::{Context as TaskContext, Poll, Waker},
    time::Duration,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use stead_entities::{
    After, Answer, At, CallError, Context, Delay, ErrorKind, Every, Failure, Layout, Operation,
    Reference, Rejection, TraceContext, entity,
    testing::{Driver, Drivers, SIGNALS_PER_CALL_MAX},
};

const SECOND: Duration = Duration::from_secs(1);

/// Ready when it is polled for the second time. It asks for that itself or leaves it to others.
async fn second_poll(wakes: bool) {
    let mut is_second = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut is_second, true) {
            return Poll::Ready(());
        }
        if wakes {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    })
    .await;
}

/// Polls a future until it is ready, as somebody does whom another thread wakes.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let (mut future, mut context) = (pin!(future), TaskContext::from_waker(Waker::noop()));
    loop {
        if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
            return value;
        }
    }
}

/// Writes down what reaches it, and passes it on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
struct Log {
    lines: Vec<String>,
}

#[entity(name = "log")]
#[allow(unreachable_pub, reason = "an operation is `pub`, and its entity is not")]
impl Log {
    pub fn add(&mut self, line: String) {
        self.lines.push(line);
    }

    pub fn add_with_time(&mut self, ctx: &mut Context, line: String) {
        self.lines.push(format!("{line} at {}", ctx.now()));
    }

    pub async fn add_later(&mut self, line: String, wakes: bool) {
        second_poll(wakes).await;
        self.lines.push(line);
    }

    pub fn refuse(&mut self, line: String) -> Result<(), Rejection> {
        self.lines.push(line.clone());
        Err(Rejection::new(line))
    }

    pub fn token(&mut self, ctx: &mut Context) -> (String, u64) {
        (ctx.token(), ctx.entropy())
    }

    pub fn clear(&mut self, ctx: &mut Context) {
        ctx.signal(Log::of(ctx.key()).add("sent with the deletion".into()).after(SECOND));
        ctx.delete();
    }

    pub fn add_caller(&mut self, ctx: &mut Context) {
        self.lines.push(origin(ctx));
    }

    pub fn caller(&self, ctx: &Context) -> String {
        origin(ctx)
    }

    pub fn lines(&self) -> Vec<String> {
        self.lines.clone()
    }
}

fn origin(ctx: &Context) -> String {
    format!("{:?} in {:?}", ctx.caller(), ctx.trace().map(TraceContext::trace_id))
}

/// Sends, and sets reminders.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
struct Clerk {
    count: u32,
}

#[entity(name = "clerk")]
#[allow(unreachable_pub, reason = "an operation is `pub`, and its entity is not")]
impl Clerk {
    pub fn send(&mut self, ctx: &mut Context, to: String, lines: Vec<String>) {
        for line in lines {
            ctx.signal(Log::of(&to).add(line));
        }
    }

    pub fn send_and_fail(&mut self, ctx: &mut Context, to: String) -> Result<(), Rejection> {
        ctx.signal(Log::of(to).add("never".into()));
        Err(Rejection::new("not now"))
    }

    pub fn delay(&mut self, ctx: &mut Context, to: String, line: String, seconds: u64) {
        ctx.signal(Log::of(to).add(line).after(Duration::from_secs(seconds)));
    }

    pub fn pass_on(&mut self, ctx: &mut Context, to: String) {
        ctx.signal(Log::of(&to).add_caller());
        ctx.signal(Log::of(&to).add_caller().after(SECOND));
        ctx.remind("later", After(SECOND), Clerk::of(ctx.key()).pass_on_as_itself(to));
    }

    pub fn pass_on_as_itself(&mut self, ctx: &mut Context, to: String) {
        ctx.signal(Log::of(&to).add_caller());
    }

    pub fn impersonate(&mut self, ctx: &mut Context, to: String) {
        ctx.signal(Log::of(&to).add_caller().caller("somebody else"));
    }

    pub fn delay_into_the_past(&mut self, ctx: &mut Context, to: String) {
        ctx.signal(Log::of(&to).add("first".into()).at(ctx.now()));
        ctx.signal(Log::of(&to).add("second".into()));
    }

    pub fn bother(&mut self, ctx: &mut Context, to: String) {
        ctx.signal(Log::of(&to).refuse("no".into()));
        let wrong: Operation<()> = Reference::new("log", &to).operation("add", Some(&1));
        ctx.signal(wrong);
        let unknown: Operation<()> = Reference::new("log", &to).operation("ad", None);
        ctx.signal(unknown);
        let elsewhere: Operation<()> = Reference::new("mail", "a").operation("send", Some(&1));
        ctx.signal(elsewhere);
        ctx.signal(Log::of(&to).add("yes".into()));
    }

    pub fn count_down(&mut self, ctx: &mut Context, from: u32) {
        self.count += 1;
        ctx.signal(Log::of("count").add(format!("{} {from}", ctx.key())));
        if let Some(next) = from.checked_sub(1) {
            ctx.signal(Clerk::of(ctx.key()).count_down(next));
        }
    }

    pub fn for_ever(&mut self, ctx: &mut Context) {
        self.count += 1;
        ctx.signal(Clerk::of(ctx.key()).for_ever());
    }

    pub async fn post(&mut self, ctx: &mut Context, wakes: bool) -> u32 {
        second_poll(wakes).await;
        self.count += 1;
        ctx.signal(Log::of("post").add(format!("{} {}", ctx.key(), self.count)));
        self.count
    }

    pub fn remind(&mut self, ctx: &mut Context, seconds: u64, wakes: bool) {
        let post = Clerk::of(ctx.key()).post(wakes);
        ctx.remind("post", After(Duration::from_secs(seconds)), post);
    }

    pub fn remind_again_and_again(&mut self, ctx: &mut Context) {
        ctx.remind("post", Every(SECOND), Clerk::of(ctx.key()).post(true));
    }

    pub fn remind_of_failure(&mut self, ctx: &mut Context) {
        let fail = Clerk::of(ctx.key()).send_and_fail("post".into());
        ctx.remind("fail", At(ctx.now() + SECOND), fail);
    }

    pub fn leave(&mut self, ctx: &mut Context) {
        ctx.delete();
    }
}

fn office() -> Drivers {
    Drivers::new().entity::<Clerk>().entity::<Log>()
}

#[test]
fn a_reminder_whose_operation_awaits_fires() {
    let mut driver = Driver::<Clerk>::new("a");
    driver.apply(Clerk::of("a").remind(1, true)).expect("set");
    driver.advance(SECOND).expect("fired");
    assert_eq!((driver.state().count, driver.revision()), (1, 2));
    assert_eq!(driver.take_signals().len(), 1);
    assert_eq!(driver.reminder_due("post"), None);
    driver.apply(Clerk::of("a").remind_again_and_again()).expect("set");
    driver.advance(3 * SECOND).expect("fired three times");
    assert_eq!(driver.state().count, 4);
    assert_eq!(driver.reminder_due("post"), Some(driver.now() + SECOND));
}

#[test]
fn an_operation_that_awaits_others_changes_nothing_until_it_is_waited_for() {
    let mut driver = Driver::<Clerk>::new("a");
    let apply = driver.apply(Clerk::of("a").post(false)).expect_err("not ready").to_string();
    assert!(apply.contains("apply_async"), "{apply}");
    assert_eq!((driver.state().count, driver.revision()), (0, 0));
    assert_eq!(wait(driver.apply_async(Clerk::of("a").post(false))).expect("waited for"), 1);
    driver.apply(Clerk::of("a").remind(1, false)).expect("set");
    let due = driver.reminder_due("post").expect("set");
    let error = driver.advance(2 * SECOND).expect_err("not ready").to_string();
    assert!(error.contains("advance_async"), "{error}");
    assert_eq!((driver.now(), driver.reminder_due("post")), (due, Some(due)));
    assert_eq!(driver.state().count, 1);
    wait(driver.advance_async(SECOND)).expect("waited for");
    assert_eq!((driver.state().count, driver.reminder_due("post")), (2, None));
    assert_eq!(driver.now(), due + SECOND);
}

#[test]
fn signals_arrive_in_the_order_in_which_they_were_sent() {
    let mut office = office();
    let lines = ["1", "2", "3"].map(String::from).to_vec();
    office.apply(Clerk::of("a").send("x".into(), lines.clone())).expect("sent");
    assert_eq!(office.state::<Log>("x").lines, lines);
    assert_eq!(office.query(Log::of("x").lines()).expect("asked"), lines);
    assert_eq!(office.driver::<Log>("x").map(Driver::revision), Some(3));
    office.apply(Clerk::of("a").delay_into_the_past("y".into())).expect("sent");
    assert_eq!(office.state::<Log>("y").lines, ["first", "second"]);
    assert!(office.take_signals().is_empty() && office.take_dead_letters().is_empty());
}

#[test]
fn an_entity_may_signal_itself() {
    let mut office = office();
    office.apply(Clerk::of("a").count_down(2)).expect("counted");
    assert_eq!(office.state::<Clerk>("a").count, 3);
    assert_eq!(office.state::<Log>("count").lines, ["a 2", "a 1", "a 0"]);
}

#[test]
fn entities_that_were_never_used_are_there() {
    let office = office();
    assert_eq!(office.state::<Log>("x"), Log::default());
    assert!(office.query(Log::of("x").lines()).expect("asked").is_empty());
    assert!(office.driver::<Log>("x").is_none());
}

#[test]
fn a_rejected_operation_sends_nothing() {
    let mut office = office();
    let error = office.apply(Clerk::of("a").send_and_fail("x".into())).expect_err("rejected");
    assert_eq!(error.rejection().map(Rejection::reason), Some("not now"));
    assert_eq!(office.state::<Log>("x"), Log::default());
    assert!(office.take_dead_letters().is_empty());
}

#[test]
fn what_is_not_applied_is_a_dead_letter_and_what_is_not_registered_stays_readable() {
    let mut office = office();
    office.apply(Clerk::of("a").bother("x".into())).expect("sent");
    assert_eq!(office.state::<Log>("x").lines, ["yes"]);
    let letters = office.take_dead_letters();
    let told: Vec<_> = letters
        .iter()
        .map(|letter| (&*letter.signal.operation, letter.error.to_string()))
        .collect();
    assert_eq!(told[0], ("refuse", "rejected: no".into()));
    assert_eq!((told[1].0, told[2].0, told.len()), ("add", "ad", 3));
    assert!(letters.iter().all(|letter| {
        letter.sender.as_ref().is_some_and(|sender| sender.as_str() == "clerk/a")
    }));
    let signals = office.take_signals();
    assert_eq!(signals.iter().map(|one| one.target.as_str()).collect::<Vec<_>>(), ["mail/a"]);
    assert!(office.take_signals().is_empty() && office.take_dead_letters().is_empty());
}

#[test]
fn delayed_signals_and_reminders_share_one_clock() {
    let mut office = office();
    let begin = office.now();
    office.apply(Log::of("time").add_with_time("first".into())).expect("added");
    office.apply(Clerk::of("b").remind(2, true)).expect("set");
    office.apply(Clerk::of("a").delay("post".into(), "delayed 3".into(), 3)).expect("sent");
    office.apply(Clerk::of("a").delay("post".into(), "delayed 1".into(), 1)).expect("sent");
    office.apply(Clerk::of("a").delay("post".into(), "delayed 2".into(), 2)).expect("sent");
    office.apply(Clerk::of("a").delay("post".into(), "delayed 2 too".into(), 2)).expect("sent");
    assert_eq!(office.state::<Log>("post"), Log::default());
    office.advance(SECOND - Duration::from_micros(1)).expect("nothing is due");
    assert_eq!(office.state::<Log>("post"), Log::default());
    office.advance(Duration::from_micros(1)).expect("one is due");
    assert_eq!(office.state::<Log>("post").lines, ["delayed 1"]);
    office.advance(5 * SECOND).expect("all are due");
    let lines = ["delayed 1", "delayed 2", "delayed 2 too", "b 1", "delayed 3"];
    assert_eq!(office.state::<Log>("post").lines, lines);
    office.apply(Log::of("time").add_with_time("now".into())).expect("added");
    let times = [format!("first at {begin}"), format!("now at {}", office.now())];
    assert_eq!(office.state::<Log>("time").lines, times);
    assert_eq!(office.now().to_string(), "2026-01-01T00:00:06Z");
}

#[test]
fn a_test_sends_signals_too() {
    let mut office = office();
    office.signal(Log::of("x").add("at once".into())).expect("sent");
    office.signal(Log::of("x").refuse("never".into())).expect("sent");
    office.signal(Log::of("x").add("later".into()).after(SECOND)).expect("sent");
    let error = office.apply(Log::of("x").add("later".into()).after(SECOND)).expect_err("delayed");
    assert!(error.to_string().contains("signal"), "{error}");
    assert_eq!(office.state::<Log>("x").lines, ["at once"]);
    let letters = office.take_dead_letters();
    assert_eq!((letters.len(), &letters[0].sender), (1, &None));
    office.advance(SECOND).expect("due");
    assert_eq!(office.state::<Log>("x").lines, ["at once", "later"]);
}

#[test]
fn a_reminder_that_is_refused_is_a_dead_letter() {
    let mut office = office();
    office.apply(Clerk::of("a").remind_of_failure()).expect("set");
    office.advance(2 * SECOND).expect("the clock goes on");
    let letters = office.take_dead_letters();
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].sender.as_ref(), Some(&letters[0].signal.target));
    assert_eq!(letters[0].signal.operation, "send_and_fail");
    assert_eq!(office.driver::<Clerk>("a").and_then(|a| a.reminder_due("fail")), None);
}

#[test]
fn a_deleted_entity_is_fresh_and_takes_along_what_was_delayed() {
    let mut office = office();
    office.apply(Log::of("x").add("old".into())).expect("added");
    office.apply(Clerk::of("a").delay("x".into(), "delayed".into(), 1)).expect("sent");
    office.apply(Clerk::of("a").delay("y".into(), "elsewhere".into(), 1)).expect("sent");
    office.apply(Log::of("x").clear()).expect("deleted");
    assert_eq!(office.state::<Log>("x"), Log::default());
    assert_eq!(office.driver::<Log>("x").map(Driver::revision), Some(0));
    let letters = office.take_dead_letters();
    assert_eq!((letters.len(), &letters[0].signal.input[..]), (1, &br#""delayed""#[..]));
    assert_eq!(letters[0].signal.delay, Some(Delay::After(SECOND.into())));
    office.advance(SECOND).expect("due");
    assert_eq!(office.state::<Log>("x").lines, ["sent with the deletion"]);
    assert_eq!(office.state::<Log>("y").lines, ["elsewhere"]);
    // Its reminders are gone as well.
    office.apply(Clerk::of("a").remind(1, true)).expect("set");
    office.apply(Clerk::of("a").leave()).expect("deleted");
    office.advance(SECOND).expect("nothing is due");
    assert_eq!(office.state::<Clerk>("a"), Clerk::default());
}

#[test]
fn a_signal_whose_operation_awaits_others_is_delivered_by_the_next_call_that_waits() {
    let mut office = office();
    office.signal(Log::of("x").add_later("ready".into(), true)).expect("ready");
    let error = office.signal(Log::of("x").add_later("slow".into(), false)).expect_err("slow");
    assert!(error.to_string().contains("signal_async"), "{error}");
    assert_eq!(office.state::<Log>("x").lines, ["ready"]);
    wait(office.advance_async(SECOND)).expect("waited for");
    assert_eq!(office.state::<Log>("x").lines, ["ready", "slow"]);
    office.apply(Clerk::of("a").remind(1, false)).expect("set");
    let due = office.now() + SECOND;
    office.advance(2 * SECOND).expect_err("slow");
    assert_eq!(office.now(), due);
    wait(office.advance_async(SECOND)).expect("waited for");
    assert_eq!(office.state::<Log>("post").lines, ["a 1"]);
    assert_eq!(wait(office.apply_async(Clerk::of("a").post(false))).expect("waited for"), 2);
    assert!(office.take_dead_letters().is_empty());
}

#[test]
fn entities_that_signal_each_other_for_ever_reach_a_limit() {
    let mut office = office();
    let error = office.apply(Clerk::of("a").for_ever()).expect_err("endless");
    let stead_entities::CallError::Failed(error) = error else { panic!("a rejection") };
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    assert_eq!(office.state::<Clerk>("a").count as usize, SIGNALS_PER_CALL_MAX + 1);
}

#[test]
fn a_type_that_is_not_registered_is_not_found() {
    let mut office = Drivers::new().entity::<Clerk>();
    for error in [
        office.apply(Log::of("x").add("a".into())).expect_err("no logs"),
        office.query(Log::of("x").lines()).map(drop).expect_err("no logs"),
    ] {
        let stead_entities::CallError::Failed(error) = error else { panic!("a rejection") };
        assert_eq!(error.kind(), ErrorKind::NotFound);
    }
    office.signal(Log::of("x").add("a".into())).expect("kept");
    assert_eq!(office.take_signals().len(), 1);
}

#[test]
fn entities_that_are_driven_together_draw_different_tokens() {
    let mut office = office();
    let a = office.apply(Log::of("a").token()).expect("drawn");
    let b = office.apply(Log::of("b").token()).expect("drawn");
    let again = office.apply(Log::of("a").token()).expect("drawn");
    assert!(a.0 != b.0 && a.1 != b.1 && a.0 != again.0 && b.0 != again.0);
}

#[test]
fn drivers_may_move_to_another_thread() {
    fn sendable<T: Send>(value: T) -> T {
        value
    }
    let mut office = sendable(office());
    wait(sendable(office.advance_async(SECOND))).expect("nothing is due");
    let mut driver = Driver::<Clerk>::new("a");
    wait(sendable(driver.advance_async(SECOND))).expect("nothing is due");
}

#[test]
fn who_asked_goes_along_with_signals_and_delays_but_not_with_reminders() {
    let mut both = Drivers::new().entity::<Log>().entity::<Clerk>();
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let trace = TraceContext::new(parent, None).expect("valid");
    let pass_on = || Clerk::of("c").pass_on("l".into());
    both.apply(pass_on().caller("alice").trace(trace.clone())).expect("applied");
    both.advance(SECOND).expect("applied");
    let known = "Some(\"alice\") in Some(\"4bf92f3577b34da6a3ce929d0e0e4736\")";
    assert_eq!(both.state::<Log>("l").lines, [known, known, "None in None"]);
    let asked = both.query(Log::of("l").caller().caller("bob"));
    assert_eq!(asked.expect("answered"), "Some(\"bob\") in None");
    both.signal(Log::of("m").add_caller().caller("alice").after(SECOND)).expect("sent");
    both.advance(SECOND).expect("applied");
    assert_eq!(both.state::<Log>("m").lines, ["Some(\"alice\") in None"]);
    let refused = both.apply(Clerk::of("c").impersonate("l".into())).expect_err("refused");
    assert!(matches!(refused, CallError::Failed(error) if error.message().contains("its turn")));
    let nameless = both.apply(pass_on().caller("")).expect_err("refused");
    assert!(matches!(nameless, CallError::Failed(error) if error.kind() == ErrorKind::Invalid));
}

/// Lends books, and asks others for those that it has not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
struct Library {
    books: Vec<String>,
    story: Vec<String>,
}

#[entity(name = "library")]
#[allow(unreachable_pub, reason = "an operation is `pub`, and its entity is not")]
impl Library {
    pub fn find(&mut self, ctx: &mut Context, book: String, others: Vec<String>) {
        let questions = others.iter().map(|other| Self::of(other).lend(book.clone()));
        let then = Self::of(ctx.key()).on_lent(book.clone());
        ctx.ask_all(questions, then.within(Duration::from_secs(60)));
    }

    pub fn find_at(&mut self, ctx: &mut Context, book: String, other: String) {
        ctx.ask(Self::of(other).lend(book), Self::of(ctx.key()).on_one());
    }

    pub(crate) async fn lend(&mut self, book: String) -> Result<u32, Rejection> {
        assert!(book != "burnt", "on purpose");
        let place = self.books.iter().position(|known| *known == book);
        let place = place.ok_or_else(|| Rejection::new("not here"))?;
        self.books.remove(place);
        Ok(self.books.len() as u32)
    }

    pub(crate) fn on_lent(&mut self, answers: Vec<Answer<u32>>, r#type: String) {
        let shown = answers.iter().map(|answer| match answer {
            Ok(left) => format!("lent, {left} left"),
            Err(failure) => failure.to_string(),
        });
        self.story.push(format!("{}: {}", r#type, shown.collect::<Vec<_>>().join("; ")));
    }

    pub(crate) fn on_one(
        &mut self,
        ctx: &mut Context,
        answer: Answer<u32>,
    ) -> Result<(), Rejection> {
        let left = answer.map_err(|failure| Rejection::new(format!("{}: {failure}", ctx.key())))?;
        self.story.push(format!("lent, {left} left"));
        Ok(())
    }

    pub fn buy(&mut self, book: String) {
        self.books.push(book);
    }
}

#[test]
fn asks_are_answered_among_drivers() {
    let mut libraries = Drivers::new().entity::<Library>();
    libraries.apply(Library::of("b").buy("rust".into())).expect("applied");
    let find = |book: &str| Library::of("a").find(book.into(), vec!["b".into(), "c".into()]);
    libraries.apply(find("rust")).expect("applied");
    let expected = ["rust: lent, 0 left; rejected: not here"];
    assert_eq!(libraries.state::<Library>("a").story, expected);
    assert!(libraries.take_dead_letters().is_empty(), "a no that came back is no dead letter");
    libraries.apply(Library::of("a").find_at("rust".into(), "b".into())).expect("applied");
    let letters = libraries.take_dead_letters();
    assert_eq!(letters[0].error.rejection().expect("a no").reason(), "a: rejected: not here");
    libraries.advance(Duration::from_secs(120)).expect("nothing is due");
    assert_eq!(libraries.state::<Library>("a").story.len(), 1, "the timeout is gone");
}

#[test]
fn a_driver_is_given_answers_by_hand() {
    let mut library = Driver::<Library>::new("a");
    let ask = Library::of("a").find("rust".into(), vec!["b".into(), "c".into()]);
    library.apply(ask).expect("applied");
    let asks = library.take_asks();
    assert_eq!(asks[0].questions[1].target.key(), "c");
    assert_eq!(asks[0].timeout, Some(Duration::from_secs(60).into()));
    let short = library.answer(&asks[0], [Ok(1_u32)]).expect_err("two were asked");
    assert!(short.to_string().contains("1 answers to 2 questions"), "{short}");
    let answers = [Ok(1_u32), Err(Failure::TimedOut)];
    library.answer(&asks[0], answers).expect("applied");
    assert_eq!(library.state().story, ["rust: lent, 1 left; no answer came in time"]);
}

#[test]
fn asks_that_cannot_be_answered_fail_their_turn() {
    #[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema, Layout)]
    struct Asker(u8);

    #[entity(name = "asker")]
    #[allow(unreachable_pub, reason = "an operation is `pub`, and its entity is not")]
    impl Asker {
        pub fn ask(&mut self, ctx: &mut Context, how: String) {
            let question = Library::of("b").lend("rust".into());
            let own = Self::of(ctx.key()).on_lent();
            match how.as_str() {
                "later" => ctx.ask(question.after(Duration::from_secs(1)), own),
                "with a deadline" => ctx.ask(question.deadline(Duration::from_secs(1)), own),
                "for another" => ctx.ask(question, Self::of("other").on_lent()),
                "and ends" => {
                    ctx.ask(question, own);
                    ctx.delete();
                }
                "too many" => ctx.ask_all(
                    (0..2_000).map(|_| Library::of("b").lend("rust".into())),
                    Self::of(ctx.key()).on_all(),
                ),
                _ => ctx.remind("?5", After(Duration::from_secs(1)), Self::of(ctx.key()).tick()),
            }
        }
        pub(crate) fn on_lent(&mut self, answer: Answer<u32>) {
            self.0 += u8::from(answer.is_ok());
        }
        pub(crate) fn on_all(&mut self, answers: Vec<Answer<u32>>) {
            self.0 += answers.len() as u8;
        }
        pub(crate) fn tick(&mut self) {}
    }

    let wrong = ["later", "with a deadline", "for another", "and ends", "too many", "?"];
    for how in wrong {
        let mut asker = Driver::<Asker>::new("a");
        let refused = asker.apply(Asker::of("a").ask(how.to_owned())).expect_err(how);
        assert!(matches!(refused, CallError::Failed(_)), "{how}: {refused:?}");
        assert!(asker.take_asks().is_empty());
    }
}

/// A tree of some depth, and a field that not everybody knows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema, Layout)]
struct Tree {
    below: Vec<stead_entities::Json<serde_json::Value>>,
}

#[entity(name = "tree")]
#[allow(unreachable_pub, reason = "an operation is `pub`, and its entity is not")]
impl Tree {
    pub fn ask(&mut self, ctx: &mut Context, depth: usize) {
        ctx.ask(Self::of("other").grow(depth), Self::of(ctx.key()).on_grown());
    }
    pub(crate) fn grow(&mut self, depth: usize) -> serde_json::Value {
        (0..depth).fold(serde_json::json!(1), |below, _| serde_json::json!({ "below": [below] }))
    }
    pub(crate) fn on_grown(&mut self, answer: Answer<serde_json::Value>) {
        self.below.extend(answer.map(stead_entities::Json));
    }
}

#[test]
fn an_answer_may_be_as_deep_as_a_result() {
    let mut trees = Drivers::new().entity::<Tree>();
    trees.apply(Tree::of("a").ask(45)).expect("applied");
    assert!(trees.take_dead_letters().is_empty());
    assert_eq!(trees.state::<Tree>("a").below.len(), 1);
}
