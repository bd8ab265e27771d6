//! Breaks one protection on purpose, so that it can be shown which test notices. Compiled only with the
//! feature `sabotage`, in which the environment variable `STEAD_SABOTAGE` names the break; other builds
//! have neither a branch nor state of it. `make sabotage` goes through all of them: those of the engine of workflows,
//! which are used here, and those of the runtime.

/// Lists the breaks: number, name, the row of `docs/invariants.md` that each breaks, and what it does.
macro_rules! sabotages {
    ($($number:ident $name:ident breaks $invariant:literal: $what:literal)*) => {
        /// One protection that can be broken.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Sabotage {
            $(#[doc = $what] $name,)*
        }

        #[cfg(feature = "sabotage")]
        impl Sabotage {
            /// The break of a name or number.
            fn named(text: &str) -> Option<Self> {
                $(if text == stringify!($name) || text == stringify!($number) {
                    return Some(Self::$name);
                })*
                None
            }
        }
    };
}

sabotages! {
    X1 UnsyncedLog breaks 2: "The log is not flushed by a commit."
    X2 ReleaseBeforeFlush breaks 3: "Callers are answered before the commit of their turn."
    X3 SignalsWithoutRows breaks 8: "Signals between entities are not written by their sender's commit."
    X4 ForgottenKeys breaks 7: "Idempotency keys are neither written nor looked up."
    X5 AdvisoryFence breaks 32: "A batch that does not move its lane is committed all the same."
    X6 RenewalThatInserts breaks 39: "A lease that has run out is renewed."
    X7 LeaseByWallClock breaks 39: "A lease is judged by the wall clock of a node."
    X8 RetriedFlush breaks 20: "A flush that failed is tried again and called durable."
    X9 ReminderRemovedWhenFired breaks 10: "A reminder is removed when it fires, not by its turn."
    X10 CancelByNameOnly breaks 11: "A reminder that was set again runs at its old time too."
    X11 OverdueRemindersSkipped breaks 10: "What became due while nobody served is skipped."
    X12 DamagedStateReplaced breaks 13: "A state that cannot be read is replaced by the first one."
    X13 MailboxDropsOldest breaks 14: "A full mailbox drops its oldest operation."
    X14 AnswersWithoutLease breaks 39: "A node answers though its lease has run out."
    X15 UnknownCalledFailed breaks 6: "An outcome that is not known is called a failure."
    X18 DamagedLogSkipped breaks 16: "Damaged parts of the log are skipped."
    X19 MovedPartitionCommits breaks 38: "A partition that was given up goes on committing."
    X20 DroppedCallerCancels breaks 15: "A caller that goes away withdraws its operation."
    X21 AlwaysReady breaks 59: "A node always says that it is ready."
    X22 SeedPerProcess breaks 31: "Each process places partitions by a seed of its own."
    X26 GroupOnFailedOne breaks 5: "A write group that was built on a failed one is committed."
    X27 AnswerBeforeEarlierTurns breaks 3: "A query is answered before earlier turns are durable."
    X28 DiscardRestoresStored breaks 4: "A discarded turn restores the stored state."
    X29 AmbiguousCommitByRead breaks 33: "A lost answer to a commit is settled by a plain read."
    X30 ConsumedRowNotNeeded breaks 8: "A turn is committed though its inbox row is gone."
    X31 LaterSignalsPass breaks 9: "A failed signal lets later ones of its sender pass."
    X32 AttemptsInMemory breaks 23: "Attempts are counted in memory only."
    X40 BufferedNeverFlushed breaks 68: "What a buffered entity has answered is never flushed by itself."
    X41 AllBuffered breaks 68: "Durable entities are answered before their commit is flushed, too."
    X42 RewritingSkipped breaks 67: "A state is said to be rewritten, and is not."
    X43 VersionForgottenUncounted breaks 67: "A version is left out though states are stored in it."
    X44 IndexNotInCommit breaks 69: "The rows of indexes are not written by the commit of the state."
    X45 IndexedByLastTurn breaks 69: "Where turns are merged, only the rows of the last but one are ended."
    X46 IndexOutlivesState breaks 69: "A deletion leaves the rows of indexes."
    X47 ForeignIndexNotNoted breaks 69: "A program that does not know an index says nothing of its partitions."
    X48 OthersChangesSkipped breaks 70: "A stream of changes hears of the commits of its own node alone."
    X49 ChangeNotInCommit breaks 72: "The log of changes is not written by the commit of the state."
    X50 ForeignChangesNotNoted breaks 72: "A program that does not keep changes says nothing of its partitions."
    X51 PlacedAfterList breaks 72: "A stream of a type takes its place in the log behind its list of what is there."
    X52 LivingLogPassed breaks 72: "A stream of a type takes the log of a node that still commits for read."
    X53 BudgetIgnored breaks 73: "Entities stay in memory though it is used up."
    X54 EntriesOfLastTurn breaks 74: "Where turns are merged, only the entries that the last ones changed are written."
    X55 EntriesOutliveState breaks 74: "A deletion leaves the entries of collections."
    X56 EntriesReadEarly breaks 75: "Entries are read before what earlier turns changed is durable."
    X57 TurnRunAgainLater breaks 75: "A turn that lacked entries is run again with another time and entropy."
    X58 StepBeforeCommit breaks 76: "A step begins before the turn that asks for it is durable."
    X59 NoHostingRow breaks 77: "Nothing brings a workflow with steps under way back to a new owner."
    X60 LockIgnored breaks 79: "Operations of others are applied to an entity that is locked."
    X61 LockNotStored breaks 79: "A lock is not written with the entity."
    X62 DeclaredUnread breaks 84: "A program declares what it declares whatever others have declared meanwhile."
    X63 ReadsAreAttempts breaks 83: "A turn whose entries cannot be read has used up an attempt."
    X64 PlaceAtFirstPoll breaks 78: "An operation of a workflow has its place from who polls it first."
    X65 TwoDeliveriesAPoll breaks 78: "Timers that are due together are handed over before the code is polled."
    X66 RaceByPosition breaks 78: "A race is won by the last branch that is done, and not by what came first."
    X67 HeadInSecondBatch breaks 85: "States are committed behind what else their turns write."
    X68 OutcomesForgotten breaks 77: "Steps whose outcome is durable begin again at the next owner."
    X69 TokenOfAttempt breaks 77: "Each attempt of a step has a token of its own."
    X70 NoAnswerOfLetter breaks 86: "Who asked hears nothing of a dead letter."
    X71 EventsEndWithRun breaks 87: "Events that wait end with the run that did not take them."
    X72 CancelledWaitTakes breaks 87: "A wait that was given up takes an event."
    X73 TimersEarly breaks 88: "What is due in the next second is handed over with what arrives."
    X74 MismatchFails breaks 89: "Code that does not fit its history fails the workflow."
    X75 LostWhenStuck breaks 89: "What arrives for a workflow that the code refuses is not kept."
    X76 TerminatedGoesOn breaks 91: "What arrives for a workflow that was terminated is handed over."
    X77 TerminatedUntold breaks 91: "Steps and children of a workflow that is terminated are not told."
    X78 TimersWhileSuspended breaks 92: "Timers of a workflow that is suspended are handed over."
    X79 DropCancels breaks 93: "A run that leaves memory gives up what is outstanding."
    X80 LateOutcomesKept breaks 93: "Outcomes that nobody waits for any more are added to the history."
    X81 ParentForgotten breaks 94: "A run that follows another one has no parent."
    X82 LocksAsGiven breaks 79: "A section locks in the order in which its entities are given."
    X83 LocksOutliveRun breaks 79: "A workflow that is terminated keeps its locks."
    X84 StartsUnchecked breaks 95: "A start begins a run though another one goes on."
    X85 Unguarded breaks 97: "Code of workflows is polled where tokio runs."
    X86 ForeignWakes breaks 97: "A wake by something that is not the workflow's counts like one of its own."
    X87 IdleUnseen breaks 97: "A run in which nothing is outstanding, and that has not ended, stays."
    X88 NewestPolled breaks 98: "A run goes on with the newest version of its code."
    X89 EndedRunsStay breaks 99: "A run that has ended stays in memory."
    X90 PurgeByPrefix breaks 100: "A deletion takes along the entries of entities whose keys begin with its own."
    X91 FailuresByType breaks 80: "Of the failures of a run only rejections are made again."
    X92 PatchByProgram breaks 101: "A patch is answered by the program, and not by the run."
    X93 DriverOutOfOrder breaks 102: "The driver delivers the newest signal first."
    X94 PoisonedTriedAgain breaks 90: "A workflow that has ended its process is tried by each process that hosts it."
    X95 EarlyEventsRefused breaks 87: "An event that is sent before the start is refused, as one of a caller."
    X96 LateFencePasses breaks 79: "What is asked under a lock that was lost is applied."
    X97 LaterEventsPass breaks 87: "An event that comes when there is room again passes those for which there was none."
    X33 AnswerOutsideCommit breaks 61: "The answer to a question is sent, and not part of a commit."
    X34 LateAnswerApplied breaks 61: "An answer that comes behind its timeout is applied too."
    X35 LetterToldOutsideCommit breaks 62: "An entity is told of its dead letter, and not by the commit that keeps it."
    X36 CommittedReadOfLive breaks 63: "A read of the committed state shows one that is not durable yet."
    X37 MovedReminderFires breaks 64: "A reminder that was moved to a later time fires at its old one too."
    X38 ExpiryWhileWorkWaits breaks 65: "An entity expires though accepted work waits for it."
    X39 CronTwiceInFold breaks 66: "A time of day that comes twice, as clocks are set back, is due twice."
}

#[cfg(feature = "sabotage")]
impl Sabotage {
    /// Whether this protection is to be broken.
    pub fn is_on(self) -> bool {
        use std::sync::OnceLock;
        static CHOSEN: OnceLock<Option<Sabotage>> = OnceLock::new();
        let chosen = CHOSEN.get_or_init(|| {
            let text = std::env::var("STEAD_SABOTAGE").ok()?;
            Some(Self::named(&text).unwrap_or_else(|| panic!("there is no sabotage {text}")))
        });
        *chosen == Some(self)
    }
}

#[cfg(not(feature = "sabotage"))]
impl Sabotage {
    /// Never: a constant, so that nothing of the break is compiled.
    pub const fn is_on(self) -> bool {
        false
    }
}
