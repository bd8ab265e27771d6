//! An approval by a person, with a timeout and an optional escalation.

use std::fmt;

use crate::{
    After, Context, Deserialize, EntityId, JsonSchema, Layout, Operation, Reference, Rejection,
    Serialize, Timeout, Timestamp, entity,
};

const TIMEOUT: &str = "timeout";

/// One question to one approver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Approval {
    status: Status,
    request: Option<Request>,
    requested_at: Option<Timestamp>,
    settled_by: Option<String>,
    settled_at: Option<Timestamp>,
    reason: Option<String>,
}

/// The status of an approval.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Layout,
)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing was asked yet.
    #[default]
    New,
    /// Asked, and not yet settled.
    Pending,
    /// The approver said yes.
    Approved,
    /// The approver said no.
    Rejected,
    /// Taken back before it was settled.
    Withdrawn,
    /// Nobody settled it in time.
    Escalated,
}

/// A request for an approval.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Request {
    /// The person who is to decide.
    pub approver: String,
    /// How long the approver has, as an ISO 8601 duration such as `PT24H`.
    pub timeout: Timeout,
    /// The entity that hears of it when the time is over.
    #[serde(default)]
    pub escalate_to: Option<Target>,
}

/// An operation of some entity, which takes the id of an approval, as text, as its argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema, Layout)]
pub struct Target {
    /// The entity's type.
    pub entity_type: String,
    /// The entity's key.
    pub key: String,
    /// The operation, which takes one text.
    pub operation: String,
}

/// An approval that is requested once and settled once: approved, rejected, withdrawn, or escalated
/// by its timeout. Every other transition is a rejection that names the present status.
#[entity(name = "approval", index(status: Status))]
impl Approval {
    /// Asks for an approval and starts its timeout.
    pub fn request(&mut self, ctx: &mut Context, request: Request) -> Result<(), Rejection> {
        self.require(Status::New)?;
        if let Some(target) = &request.escalate_to {
            EntityId::new(&target.entity_type, &target.key)
                .map_err(|error| Rejection::new(format!("escalate_to: {error}")))?;
        }
        ctx.remind(TIMEOUT, After(request.timeout), Self::of(ctx.key()).escalate());
        self.status = Status::Pending;
        self.requested_at = Some(ctx.now());
        self.request = Some(request);
        Ok(())
    }

    /// Says yes. `by` is who says so.
    pub fn approve(&mut self, ctx: &mut Context, by: String) -> Result<(), Rejection> {
        self.settle(ctx, Status::Approved, by, None)
    }

    /// Says no. `by` is who says so, `reason` why.
    pub fn reject(
        &mut self,
        ctx: &mut Context,
        by: String,
        reason: String,
    ) -> Result<(), Rejection> {
        self.settle(ctx, Status::Rejected, by, Some(reason))
    }

    /// Takes the request back. `by` is who does so.
    pub fn withdraw(&mut self, ctx: &mut Context, by: String) -> Result<(), Rejection> {
        self.settle(ctx, Status::Withdrawn, by, None)
    }

    /// The timeout: tells the escalation target.
    pub(crate) fn escalate(&mut self, ctx: &mut Context) -> Result<(), Rejection> {
        self.require(Status::Pending)?;
        self.status = Status::Escalated;
        self.settled_at = Some(ctx.now());
        let target = self.request.as_ref().and_then(|request| request.escalate_to.as_ref());
        if let Some(target) = target {
            let id = ctx.id().to_string();
            let reference = Reference::new(&target.entity_type, &target.key);
            let operation: Operation<()> = reference.operation(target.operation.clone(), Some(&id));
            ctx.signal(operation);
        }
        Ok(())
    }

    /// The status of the approval.
    pub fn status(&self) -> Status {
        self.status
    }

    /// The person who is asked; nobody where nothing was asked yet.
    #[index]
    fn approver(&self) -> Option<String> {
        self.request.as_ref().map(|request| request.approver.clone())
    }

    fn require(&self, status: Status) -> Result<(), Rejection> {
        if self.status == status {
            return Ok(());
        }
        Err(Rejection::new(format!("the approval is {}", self.status)))
    }

    fn settle(
        &mut self,
        ctx: &mut Context,
        status: Status,
        by: String,
        reason: Option<String>,
    ) -> Result<(), Rejection> {
        self.require(Status::Pending)?;
        ctx.cancel_reminder(TIMEOUT);
        self.status = status;
        self.settled_by = Some(by);
        self.settled_at = Some(ctx.now());
        self.reason = reason;
        Ok(())
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Rejected => "rejected",
            Self::Withdrawn => "withdrawn",
            Self::Escalated => "escalated",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{CallError, testing::Driver};

    fn question() -> Request {
        let escalate_to = Some(Target {
            entity_type: "inbox".into(),
            key: "boss".into(),
            operation: "notify".into(),
        });
        Request { approver: "kim".into(), timeout: Duration::from_secs(60).into(), escalate_to }
    }

    fn pending() -> Driver<Approval> {
        let mut driver = Driver::new("a");
        driver.apply(Approval::of("a").request(question())).expect("a first request");
        driver
    }

    fn reason(result: Result<(), CallError>) -> String {
        result.expect_err("refused").rejection().expect("a rejection").reason().to_owned()
    }

    #[test]
    fn a_timeout_escalates_and_tells_the_target() {
        let mut driver = pending();
        driver.advance(Duration::from_secs(59)).expect("not due");
        assert_eq!(driver.state().status(), Status::Pending);
        driver.advance(Duration::from_secs(1)).expect("due");
        assert_eq!(driver.state().status(), Status::Escalated);
        let signals = driver.take_signals();
        assert_eq!(signals.len(), 1);
        assert_eq!(signals[0].target.as_str(), "inbox/boss");
        assert_eq!(signals[0].input, br#""approval/a""#);
    }

    #[test]
    fn a_decision_cancels_the_timeout_and_records_who_and_when() {
        let mut driver = pending();
        let operation = Approval::of("a").reject("kim".into(), "too dear".into());
        driver.apply(operation).expect("pending");
        assert_eq!(driver.reminder_due(TIMEOUT), None);
        assert_eq!(driver.state().settled_by.as_deref(), Some("kim"));
        assert_eq!(driver.state().settled_at, Some(driver.now()));
        assert_eq!(driver.state().reason.as_deref(), Some("too dear"));
    }

    #[test]
    fn every_illegal_transition_names_the_present_status() {
        let approval = Approval::of("a");
        let mut fresh = Driver::<Approval>::new("a");
        assert_eq!(reason(fresh.apply(approval.approve("x".into()))), "the approval is new");
        let mut settled = pending();
        settled.apply(approval.approve("x".into())).expect("pending");
        assert_eq!(reason(settled.apply(approval.request(question()))), "the approval is approved");
        assert_eq!(
            reason(settled.apply(approval.withdraw("x".into()))),
            "the approval is approved"
        );
        assert_eq!(reason(settled.apply(approval.escalate())), "the approval is approved");
    }
}
