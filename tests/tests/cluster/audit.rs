//! Triggers that watch every write: only the owner of a partition writes its rows, under the lane that
//! its transaction moved. A number that no rollback takes back counts what they refuse.

/// Makes the triggers.
pub const TRIGGERS: &str = "
create sequence stead_audit_hits;
create function stead_audit() returns trigger language plpgsql as $$
declare
    writer bigint;
    owned_by bigint;
    number integer;
    old_key bytea;
begin
    select incarnation into writer from stead_lanes
        where xmin::text = (txid_current() % 4294967296)::text limit 1;
    if tg_op = 'DELETE' then old_key := old.key; else old_key := new.key; end if;
    if writer is null then
        perform nextval('stead_audit_hits');
        raise exception 'a write to % without a lane', tg_table_name;
    end if;
    -- What an entity sends is fenced by the lane of the sender.
    if tg_op = 'INSERT' and tg_table_name in ('stead_inbox', 'stead_reminders', 'stead_due',
        'stead_origins') then
        return new;
    end if;
    if tg_table_name = 'stead_states' then
        if tg_op = 'DELETE' then number := old.partition; else number := new.partition; end if;
    else
        number := get_byte(old_key, 0) * 256 + get_byte(old_key, 1);
    end if;
    select owner into owned_by from stead_partitions where partition = number;
    if owned_by is distinct from writer then
        perform nextval('stead_audit_hits');
        raise exception 'partition % is of %, not of %', number, owned_by, writer;
    end if;
    if tg_op = 'DELETE' then return old; else return new; end if;
end $$;
do $$
declare
    watched text;
begin
    foreach watched in array array['stead_states', 'stead_inbox', 'stead_reminders', 'stead_due',
        'stead_idempotency', 'stead_dead_letters', 'stead_origins']
    loop
        execute format('create trigger audit before insert or update or delete on %I
            for each row execute function stead_audit()', watched);
    end loop;
end $$;
";

/// How often they refused.
pub const HITS: &str =
    "select case when is_called then last_value else 0 end from stead_audit_hits";
