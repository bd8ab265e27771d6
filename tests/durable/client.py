"""The published Python client of Durable Functions against a server: what it asks, and what has to come of it.

Run by the test `durable`; by hand: client.py http://127.0.0.1:8080
"""

import asyncio
import datetime
import json
import sys
import urllib.request
import uuid

from azure.durable_functions import DurableOrchestrationClient, EntityId, OrchestrationRuntimeStatus

BASE = sys.argv[1].rstrip("/") + "/runtime/webhooks/durabletask"


def binding():
    with urllib.request.urlopen(BASE + "/client-binding") as answer:
        return answer.read().decode()


async def until(client, instance, wanted, **options):
    for _ in range(300):
        status = await client.get_status(instance, **options)
        if status.runtime_status in wanted:
            return status
        await asyncio.sleep(0.1)
    raise AssertionError(f"{instance} is {status.runtime_status}, and not {wanted}")


async def number_of(client, entity):
    for _ in range(100):
        state = (await client.read_entity_state(entity))
        if state.entity_exists:
            value = state.entity_state
            return value if isinstance(value, int) else next(iter(value.values()))
        await asyncio.sleep(0.05)
    return None


async def entities(client):
    counter = EntityId("Counter", "python " + uuid.uuid4().hex + "@ü:;")
    assert not (await client.read_entity_state(counter)).entity_exists
    for amount in (5, 7, -2):
        await client.signal_entity(counter, "add", amount)
    for _ in range(100):
        if await number_of(client, counter) == 10:
            break
        await asyncio.sleep(0.05)
    assert await number_of(client, counter) == 10, "numbers are added, and not put together"
    # What the entity does not take is accepted, and changes nothing.
    await client.signal_entity(counter, "add", "no number")
    await client.signal_entity(counter, "no_such_operation", 1)
    await client.signal_entity(counter, "reset")
    for _ in range(100):
        if await number_of(client, counter) == 0:
            break
        await asyncio.sleep(0.05)
    assert await number_of(client, counter) == 0
    await client.signal_entity(counter, "delete")
    for _ in range(100):
        if not (await client.read_entity_state(counter)).entity_exists:
            break
        await asyncio.sleep(0.05)
    assert not (await client.read_entity_state(counter)).entity_exists


async def decisions(client):
    ended = {
        OrchestrationRuntimeStatus.Completed,
        OrchestrationRuntimeStatus.Failed,
        OrchestrationRuntimeStatus.Terminated,
    }
    for decision, output in ((True, "approved"), (False, "rejected")):
        instance = await client.start_new("Approval", client_input={"timeoutSeconds": 600})
        running = await client.get_status(instance, show_input=True)
        assert running.runtime_status == OrchestrationRuntimeStatus.Running, running.to_json()
        assert running.input_["timeoutSeconds"] == 600, running.input_
        assert isinstance(running.created_time, datetime.datetime)
        await client.raise_event(instance, "ApprovalEvent", decision)
        status = await until(client, instance, ended, show_history=True, show_history_output=True)
        assert status.output == output, status.to_json()
        kinds = [event["EventType"] for event in status.historyEvents]
        assert kinds == ["ExecutionStarted", "EventRaised", "ExecutionCompleted"], kinds
        try:
            await client.raise_event(instance, "ApprovalEvent", True)
            raise AssertionError("an event behind the end is refused")
        except Exception as error:
            assert "completed" in str(error).lower(), error
    instance = await client.start_new("approval", client_input={"timeoutMs": 50})
    assert (await until(client, instance, ended)).output == "timed out"
    try:
        await client.start_new("NoSuchFunction", client_input=1)
        raise AssertionError("an unknown function is refused")
    except Exception as error:
        assert "NoSuchFunction" in str(error), error


async def management(client):
    instance = "python-" + uuid.uuid4().hex
    assert await client.start_new("Approval", instance) == instance
    try:
        await client.start_new("Approval", instance)
        raise AssertionError("a second one of the id is refused while the first goes on")
    except Exception as error:
        assert instance in str(error), error
    await client.suspend(instance, "for a while")
    suspended = await client.get_status(instance)
    assert suspended.runtime_status == OrchestrationRuntimeStatus.Suspended
    await client.raise_event(instance, "ApprovalEvent", True)
    assert (await client.get_status(instance)).runtime_status == suspended.runtime_status
    await client.resume(instance, "go on")
    done = await until(client, instance, {OrchestrationRuntimeStatus.Completed})
    assert done.output == "approved", "an event that came meanwhile is kept"
    restarted = await client.restart(instance, restart_with_new_instance_id=True)
    assert restarted["id"] != instance, restarted
    await client.terminate(restarted["id"], "not needed")
    terminated = await until(client, restarted["id"], {OrchestrationRuntimeStatus.Terminated})
    assert terminated.output == "not needed", terminated.to_json()
    try:
        await client.rewind(instance, "it has not failed")
        raise AssertionError("only one that has failed is rewound")
    except Exception as error:
        assert "failed" in str(error).lower() or "rewind" in str(error).lower(), error
    listed = await client.get_status_by(runtime_status=[OrchestrationRuntimeStatus.Completed])
    assert any(status.instance_id == instance for status in listed), len(listed)
    everything = await client.get_status_all()
    assert len(everything) >= len(listed)
    assert (await client.purge_instance_history(instance)).instances_deleted == 1
    assert (await client.purge_instance_history(instance)).instances_deleted == 0
    since = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=10)
    purged = await client.purge_instance_history_by(
        created_time_from=since.replace(tzinfo=None),
        runtime_status=[OrchestrationRuntimeStatus.Terminated],
    )
    assert purged.instances_deleted >= 1, purged.instances_deleted
    gone = await client.get_status(restarted["id"])
    assert gone.instance_id is None, gone.to_json()


async def main():
    client = DurableOrchestrationClient(binding())
    for part in (entities, decisions, management):
        await part(client)
        print(f"python: {part.__name__}")


asyncio.run(main())
