//! Reminders and deletions.

use super::*;

#[tokio::test]
async fn reminders_fire_once_never_early_and_after_downtime() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    journal.remind_once(60, 1).await.expect("a call");
    journal.append(0).await.expect("a call");
    world.advance(59);
    tokio::time::sleep(Duration::from_millis(50)).await;
    expect_entries(&node, "a", &[0]).await;
    world.disk.crash();
    world.advance(3_600);
    let node = world.start().await;
    expect_entries(&node, "a", &[0, 1]).await;
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "a", &[0, 1]).await;
    assert!(world.disk.rows(Table::Due).is_empty());
}

#[tokio::test]
async fn a_missed_recurrence_is_caught_up_once() {
    let world = World::new();
    let node = world.start().await;
    node.entity::<Journal>("a").remind_every(10).await.expect("a call");
    world.disk.crash();
    world.advance(95);
    let node = world.start().await;
    expect_entries(&node, "a", &[7]).await;
    assert_eq!(world.disk.rows(Table::Due).len(), 1, "the next occurrence is scheduled");
    node.entity::<Journal>("a").cancel().await.expect("a call");
    assert!(world.disk.rows(Table::Due).is_empty(), "cancelled in the same commit");
}

#[tokio::test]
async fn a_reminder_that_was_set_again_fires_once_at_its_new_time() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    journal.remind_once(30, 1).await.expect("a call");
    journal.remind_once(90, 2).await.expect("a call");
    world.advance(31);
    // A new term reads the window anew.
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "a", &[]).await;
    world.advance(60);
    let _wake_up = node.entity::<Journal>("a").entries().await;
    world.disk.crash();
    let node = world.start().await;
    expect_entries(&node, "a", &[2]).await;
}

#[tokio::test]
async fn a_deletion_takes_reminders_and_delayed_signals_along() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    journal.append(1).await.expect("a call");
    journal.remind_once(60, 5).await.expect("a call");
    journal.append(6).after(Duration::from_secs(60)).signal().await.expect("a signal");
    let id = EntityId::new("journal", "a").expect("valid");
    let before = node.state_of(&id).await.expect("readable").expect("a state");
    node.delete(&id).await.expect("deleted");
    assert_eq!(node.state_of(&id).await.expect("readable"), None);
    assert!(world.disk.rows(Table::States).is_empty());
    assert!(world.disk.rows(Table::Due).is_empty());
    assert_eq!(world.disk.rows(Table::DeadLetters).len(), 1, "the delayed signal");
    assert_eq!(journal.append(2).await.expect("a new incarnation"), 1);
    let after = node.state_of(&id).await.expect("readable").expect("a state");
    assert!(after.generation > before.generation);
    journal.end().await.expect("deletes itself");
    assert_eq!(node.state_of(&id).await.expect("readable"), None);
}

/// A clock that ticks more slowly than time passes, or stands for a while, makes timers fire early.
#[tokio::test]
async fn a_reminder_whose_timer_fired_early_is_waited_for_again() {
    let world = World::new();
    let node = world.start().await;
    let delay = Duration::from_millis(100);
    node.entity::<Journal>("a").append(1).after(delay).signal().await.expect("accepted");
    // The clock stands for longer than the timer runs, and nobody touches the entity after that.
    tokio::time::sleep(4 * delay).await;
    assert_eq!(world.disk.rows(Table::Reminders).len(), 1, "it is not early");
    world.clock.advance_to(world.clock.now() + Duration::from_secs(1));
    let is_applied = async || world.disk.rows(Table::Reminders).is_empty();
    until_true("a due signal is applied though its timer fired early", is_applied).await;
    expect_entries(&node, "a", &[1]).await;
}

#[tokio::test]
async fn a_reminder_that_was_put_off_is_listed_with_the_time_at_which_it_is_due() {
    let world = World::new();
    let node = world.start().await;
    let journal = node.entity::<Journal>("a");
    let id = EntityId::new("journal", "a").expect("valid");
    journal.remind_once(60, 1).await.expect("applied");
    world.advance(30);
    journal.remind_once(60, 1).await.expect("applied");
    let due = world.clock.now() + Duration::from_secs(60);
    let listed = node.reminders(&id, None, 10).await.expect("a list").rows;
    assert_eq!(listed.iter().map(|it| it.due).collect::<Vec<_>>(), [due]);
    world.advance(59);
    expect_entries(&node, "a", &[]).await;
    world.advance(1);
    expect_entries(&node, "a", &[1]).await;
    node.abort().await;
}
