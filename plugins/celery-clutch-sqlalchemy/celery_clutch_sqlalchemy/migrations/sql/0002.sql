-- What is on the path of a job, each in one round trip. The rules are those of
-- celery_clutch.stores.machine, and so are the rows.
--
-- Procedures are called with less work of the server's than functions. Each locks the row of the
-- run first. Every statement of a volatile function sees what others have committed before it (READ
-- COMMITTED), so from there on a run has one writer. What a call is about is one value of JSON,
-- which costs less than many arguments; what is bytes is apart. Rows are looked for by all of their
-- key: by a part of it, or by lists, a plan may go through all rows of a run.
-- Parameters are p_, variables v_, what is returned o_. Times are those of the caller's clock.

-- A run that is being written, the job by which it is, and what has come of it.
CREATE TYPE clutch_work AS (
    id bigint, ends text, remaining bigint, state text, generation bigint, failing bigint,
    dead bigint, ender text, ended_at double precision,
    by_job text, at_time double precision, made text[], settled text[]
);
--;
CREATE FUNCTION clutch_text(p_value bytea) RETURNS text
LANGUAGE sql STABLE AS $$ SELECT convert_from(p_value, 'UTF8') $$;
--;
-- The time now, if it was p_now when the caller called, who may have waited since.
CREATE FUNCTION clutch_now(p_now double precision) RETURNS double precision
LANGUAGE sql VOLATILE AS $$
    SELECT p_now + extract(epoch FROM clock_timestamp() - statement_timestamp())
$$;
--;
-- What reads or writes is PL/pgSQL, which keeps its plans.
CREATE FUNCTION clutch_get(p_id bigint, p_kind text, p_key text) RETURNS bytea
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (SELECT value FROM clutch_rows WHERE run_id = p_id AND kind = p_kind AND key = p_key);
END $$;
--;
CREATE FUNCTION clutch_put(p_id bigint, p_kind text, p_key text, p_value text) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO clutch_rows VALUES (p_id, p_kind, p_key, convert_to(p_value, 'UTF8'))
    ON CONFLICT (run_id, kind, key) DO UPDATE SET value = excluded.value;
END $$;
--;
CREATE FUNCTION clutch_number(p_id bigint, p_kind text, p_key text) RETURNS bigint
LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN coalesce(clutch_text((
        SELECT value FROM clutch_rows WHERE run_id = p_id AND kind = p_kind AND key = p_key
    ))::bigint, 0);
END $$;
--;
CREATE FUNCTION clutch_add(p_id bigint, p_kind text, p_key text) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_number bigint;
BEGIN
    UPDATE clutch_rows SET value = convert_to((clutch_text(value)::bigint + 1)::text, 'UTF8')
    WHERE run_id = p_id AND kind = p_kind AND key = p_key
    RETURNING clutch_text(value)::bigint INTO v_number;
    IF v_number IS NULL THEN
        v_number := 1;
        INSERT INTO clutch_rows VALUES (p_id, p_kind, p_key, '1');
    END IF;
    RETURN v_number;
END $$;
--;
-- The attempt of a failure, whether it was final, and whether the job has a result since.
CREATE FUNCTION clutch_flags(p_failure bytea) RETURNS bigint[]
LANGUAGE plpgsql STABLE STRICT AS $$
BEGIN
    RETURN string_to_array(
        clutch_text(substring(p_failure FROM 1 FOR position('\x0a'::bytea IN p_failure) - 1)), ' '
    )::bigint[];
END $$;
--;
-- Locks a run. Its id is null if there is none.
CREATE FUNCTION clutch_lock(p_told jsonb) RETURNS clutch_work
LANGUAGE plpgsql AS $$
DECLARE
    v_set text := set_config('lock_timeout', p_told->>'wait', true);
    v_now double precision := p_told->>'now';
    v_work clutch_work;
BEGIN
    SELECT id, ends, remaining, state, generation, failing, dead, ender, ended_at,
        p_told->>'address', v_now, '{}', '{}'
    INTO v_work FROM clutch_runs
    WHERE prefix = p_told->>'prefix' AND run = p_told->>'run' AND expires_at > v_now FOR UPDATE;
    v_work.at_time := clutch_now(v_now);
    RETURN v_work;
END $$;
--;
-- Writes what is new of a run, which is kept for so many seconds by its state.
CREATE FUNCTION clutch_touch(p_work clutch_work, p_kept jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE clutch_runs SET
        remaining = p_work.remaining, state = p_work.state, failing = p_work.failing,
        dead = p_work.dead, ender = p_work.ender,
        -- What still ran when the run failed or was cancelled moves its end.
        ended_at = CASE WHEN p_work.state IN ('FAILED', 'CANCELLED') THEN p_work.at_time
            ELSE p_work.ended_at END,
        updated_at = p_work.at_time,
        expires_at = p_work.at_time + (p_kept->>p_work.state)::double precision
    WHERE id = p_work.id;
END $$;
--;
CREATE FUNCTION clutch_put_due(p_work clutch_work, p_key text, p_since double precision)
RETURNS clutch_work
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM clutch_put(p_work.id, 'due', p_key, concat_ws(' ', p_since, 0, p_work.by_job));
    p_work.made := p_work.made || p_key;
    RETURN p_work;
END $$;
--;
-- The run has reached a state; who waits for it is told.
CREATE FUNCTION clutch_end(p_work clutch_work, p_state text, p_token text, p_due text)
RETURNS clutch_work
LANGUAGE plpgsql AS $$
BEGIN
    p_work.state := p_state;
    p_work.ender := p_token;
    p_work.ended_at := p_work.at_time;
    IF p_work.ends::jsonb ? p_state THEN
        p_work := clutch_put_due(p_work, p_due, p_work.at_time);
    END IF;
    PERFORM pg_notify('clutch_' || p_work.id, '');
    RETURN p_work;
END $$;
--;
-- Counts a job without a result as dead or failing.
CREATE FUNCTION clutch_count(p_work clutch_work, p_final bigint, p_by bigint) RETURNS clutch_work
LANGUAGE plpgsql AS $$
BEGIN
    IF p_final = 1 THEN
        p_work.dead := p_work.dead + p_by;
    ELSE
        p_work.failing := p_work.failing + p_by;
    END IF;
    RETURN p_work;
END $$;
--;
-- Counts a member of a step, once; what follows when the last has settled.
CREATE FUNCTION clutch_settle(p_work clutch_work, p_settles jsonb, p_failed boolean)
RETURNS clutch_work
LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint := p_work.id;
    v_step text := p_settles->>'step';
    v_key text := v_step || '/' || (p_settles->>'member');
    v_new boolean;
    v_count bigint;
BEGIN
    INSERT INTO clutch_rows
    VALUES (v_id, 'member', v_key, CASE WHEN p_failed THEN 'failed' ELSE 'done' END::bytea)
    ON CONFLICT DO NOTHING;
    v_new := FOUND;
    IF NOT p_failed AND NOT v_new THEN
        PERFORM clutch_put(v_id, 'member', v_key, 'done');
    END IF;
    IF v_new THEN
        v_count := clutch_add(v_id, 'mark', 'settled ' || v_step);
    ELSE
        v_count := clutch_number(v_id, 'mark', 'settled ' || v_step);
    END IF;
    IF p_failed AND (p_settles->>'loud')::boolean THEN
        PERFORM clutch_put(v_id, 'mark', 'failed ' || v_step, '1');
    END IF;
    IF v_count < (p_settles->>'width')::bigint THEN
        RETURN p_work;
    END IF;
    IF v_new THEN
        p_work.settled := p_work.settled || v_step;
    END IF;
    IF p_work.state <> 'CANCELLED' AND clutch_get(v_id, 'mark', 'failed ' || v_step) IS NOT NULL
        AND clutch_get(v_id, 'mark', 'reported ' || v_step) IS NULL
    THEN
        PERFORM clutch_put(v_id, 'mark', 'reported ' || v_step, '1');
        p_work := clutch_put_due(p_work, 'failure ' || v_step, p_work.at_time);
    END IF;
    RETURN p_work;
END $$;
--;
-- A branch is over, or dead: the next one of its parallel that is not is due.
CREATE FUNCTION clutch_turn(p_work clutch_work, p_turn jsonb, p_dead boolean) RETURNS clutch_work
LANGUAGE plpgsql AS $$
DECLARE
    v_own text := 'turn ' || (p_turn->>'member');
    v_address text := p_turn->>'address';
    v_width bigint := (p_turn->>'width')::bigint;
    v_known boolean := clutch_get(p_work.id, 'mark', v_own) IS NOT NULL;
    v_number bigint;
BEGIN
    IF NOT p_dead THEN
        PERFORM clutch_put(p_work.id, 'mark', v_own, 'over');
    ELSIF NOT v_known AND p_work.state <> 'CANCELLED' THEN
        PERFORM clutch_put(p_work.id, 'mark', v_own, 'dead');
    END IF;
    IF v_known OR p_work.state = 'CANCELLED' THEN
        RETURN p_work;
    END IF;
    v_number := greatest(
        clutch_number(p_work.id, 'mark', 'taken ' || v_address),
        least((p_turn->>'limit')::bigint, v_width)
    );
    IF p_work.generation > 0 THEN
        WHILE v_number < v_width AND clutch_get(
            p_work.id, 'mark', 'over ' || v_address || '.' || v_number
        ) IS NOT NULL LOOP
            v_number := v_number + 1;
        END LOOP;
    END IF;
    IF v_number >= v_width THEN
        PERFORM clutch_put(p_work.id, 'mark', 'taken ' || v_address, v_number::text);
        PERFORM clutch_add(p_work.id, 'mark', 'idle ' || v_address);
    ELSE
        PERFORM clutch_put(p_work.id, 'mark', 'taken ' || v_address, (v_number + 1)::text);
        p_work := clutch_put_due(p_work, 'page ' || v_address || '/' || v_number, p_work.at_time);
    END IF;
    RETURN p_work;
END $$;
--;
-- What a call has made due, or what was due before because of the job; and the pages among it.
CREATE FUNCTION clutch_due(
    p_work clutch_work, p_new boolean, p_but text,
    OUT o_due text[], OUT o_keys text[], OUT o_pages bytea[]
)
LANGUAGE plpgsql AS $$
BEGIN
    IF p_new THEN
        o_due := ARRAY(
            SELECT each FROM unnest(p_work.made) AS each WHERE each <> p_but
            GROUP BY each ORDER BY each COLLATE "C"
        );
    ELSE
        o_due := ARRAY(
            SELECT key FROM clutch_rows
            WHERE run_id = p_work.id AND kind = 'due' AND key <> p_but
                AND regexp_replace(clutch_text(value), '^[^ ]* [^ ]* ', '') = p_work.by_job
            ORDER BY key
        );
    END IF;
    o_keys := '{}';
    o_pages := '{}';
    IF o_due <> '{}' THEN
        SELECT coalesce(array_agg(key), '{}'), coalesce(array_agg(value), '{}')
        INTO o_keys, o_pages
        FROM clutch_rows
        WHERE run_id = p_work.id AND kind = 'page' AND key = ANY (
            ARRAY(SELECT substr(each, 6) FROM unnest(o_due) AS each WHERE left(each, 5) = 'page ')
        );
    END IF;
END $$;
--;
-- Writes the data of a run; what is null is deleted.
CREATE FUNCTION clutch_change(p_id bigint, p_keys jsonb, p_values bytea[]) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_key text;
    v_value bytea;
BEGIN
    FOR v_key, v_value IN
        SELECT * FROM ROWS FROM (jsonb_array_elements_text(p_keys), unnest(p_values))
    LOOP
        IF v_value IS NULL THEN
            DELETE FROM clutch_rows WHERE run_id = p_id AND kind = 'data' AND key = v_key;
        ELSE
            INSERT INTO clutch_rows VALUES (p_id, 'data', v_key, v_value)
            ON CONFLICT (run_id, kind, key) DO UPDATE SET value = excluded.value;
        END IF;
    END LOOP;
END $$;
--;
-- The verdicts are 1 run, 2 done, 3 drop, 4 give up, 5 busy.
CREATE PROCEDURE clutch_begin(
    p_told jsonb, INOUT o_verdict integer, INOUT o_held bytea, INOUT o_owner text
)
LANGUAGE plpgsql AS $$
DECLARE
    v_set text := set_config('lock_timeout', p_told->>'wait', true);
    v_now double precision := p_told->>'now';
    v_address text := p_told->>'address';
    v_turn bigint := p_told->>'turn';
    v_receipt text := p_told->'receipts'->>0;
    v_id bigint;
    v_state text;
    v_generation bigint;
    v_updated double precision;
    v_kept double precision;
    v_due boolean;
    v_done boolean;
    v_flags bigint[];
    v_lease text;
    v_lapses bigint := 0;
BEGIN
    o_verdict := 3;
    SELECT id, state, generation, updated_at INTO v_id, v_state, v_generation, v_updated
    FROM clutch_runs
    WHERE prefix = p_told->>'prefix' AND run = p_told->>'run' AND expires_at > v_now FOR UPDATE;
    IF v_id IS NULL OR v_state = 'CANCELLED' OR v_generation <> (p_told->>'generation')::bigint THEN
        RETURN;
    END IF;
    v_now := clutch_now(v_now);
    v_kept := p_told->'kept'->>v_state;
    IF abs(v_now - v_updated) > least(1, v_kept / 100) THEN -- not with every job
        UPDATE clutch_runs SET updated_at = v_now, expires_at = v_now + v_kept WHERE id = v_id;
    END IF;
    SELECT
        EXISTS (SELECT FROM clutch_rows
            WHERE run_id = v_id AND kind = 'due' AND key = v_receipt),
        EXISTS (SELECT FROM clutch_rows
            WHERE run_id = v_id AND kind = 'result' AND key = v_address),
        clutch_flags((SELECT value FROM clutch_rows
            WHERE run_id = v_id AND kind = 'failure' AND key = v_address)),
        (SELECT value FROM clutch_rows
            WHERE run_id = v_id AND kind = 'held' AND key = v_address),
        clutch_text((SELECT value FROM clutch_rows
            WHERE run_id = v_id AND kind = 'lease' AND key = v_address))
    INTO v_due, v_done, v_flags, o_held, v_lease;
    IF v_due OR jsonb_array_length(p_told->'receipts') > 1 THEN
        FOR v_receipt IN SELECT jsonb_array_elements_text(p_told->'receipts') LOOP
            DELETE FROM clutch_rows WHERE run_id = v_id AND kind = 'due' AND key = v_receipt;
        END LOOP;
    END IF;
    IF v_done THEN
        o_verdict := 2;
        o_held := NULL;
        RETURN;
    END IF;
    IF v_state = 'SUCCEEDED' OR v_flags[2] = 1 OR v_flags[1] > v_turn / 100 THEN
        o_held := NULL;
        RETURN;
    END IF;
    IF o_held IS NULL THEN
        IF v_lease IS NOT NULL THEN
            v_lapses := split_part(v_lease, ' ', 3)::bigint;
            IF v_turn <= split_part(v_lease, ' ', 2)::bigint THEN
                IF split_part(v_lease, ' ', 1) NOT IN (p_told->>'lapsed', '-') THEN
                    o_verdict := 5;
                    o_owner := split_part(v_lease, ' ', 1);
                    RETURN;
                END IF;
                v_lapses := v_lapses + 1;
            END IF;
            IF v_lapses >= (p_told->>'limit')::bigint THEN
                o_verdict := 4;
                RETURN;
            END IF;
        END IF;
        -- Where transactions are more isolated than this one, there may be a lease that is not seen.
        PERFORM clutch_put(
            v_id, 'lease', v_address,
            concat_ws(' ', p_told->>'owner', v_turn, v_lapses, v_now, p_told->>'page')
        );
    END IF;
    o_verdict := 1;
    -- That a job begins may be lost when the server crashes: it begins again. All else that is
    -- answered is for good.
    v_set := set_config('synchronous_commit', 'off', true);
END $$;
--;
-- Whether the rules of the other stores have to decide what a job of the run does: the run is marked
-- so, or all is done or skipped, and this job has no result.
CREATE FUNCTION clutch_is_unusual(p_work clutch_work) RETURNS boolean
LANGUAGE plpgsql STABLE AS $$
BEGIN
    IF clutch_get(p_work.id, 'barrier', 'unusual') IS NOT NULL THEN
        RETURN true;
    END IF;
    RETURN p_work.remaining = 0 AND clutch_get(p_work.id, 'result', p_work.by_job) IS NULL;
END $$;
--;
-- Answers -2 as what remains, and does nothing, if the run is unusual.
--
-- These are two transactions. The first does not wait for the disk, so that another job has the run
-- meanwhile. The second does, and those of several jobs wait together: what is answered is for good.
-- What ends the run is so before others see it.
CREATE PROCEDURE clutch_complete(
    p_told jsonb, p_value bytea, p_info bytea, p_values bytea[],
    INOUT o_remaining bigint, INOUT o_fresh boolean, INOUT o_generation bigint,
    INOUT o_succeeded boolean, INOUT o_settled text[], INOUT o_due text[], INOUT o_keys text[],
    INOUT o_pages bytea[]
)
LANGUAGE plpgsql AS $$
DECLARE
    v_address text := p_told->>'address';
    v_token text := p_told->>'token';
    v_work clutch_work := clutch_lock(p_told);
    v_unusual boolean;
    v_held boolean;
    v_failure bytea;
    v_flags bigint[];
    v_each jsonb;
    v_set text;
BEGIN
    o_remaining := -1; o_fresh := false; o_generation := 0; o_succeeded := false;
    IF v_work.id IS NULL THEN
        RETURN;
    END IF;
    SELECT
        NOT EXISTS (SELECT FROM clutch_rows
            WHERE run_id = v_work.id AND kind = 'result' AND key = v_address),
        EXISTS (SELECT FROM clutch_rows
            WHERE run_id = v_work.id AND kind = 'barrier' AND key = 'unusual'),
        EXISTS (SELECT FROM clutch_rows
            WHERE run_id = v_work.id AND kind = 'held' AND key = v_address)
    INTO o_fresh, v_unusual, v_held;
    IF v_unusual OR (o_fresh AND v_work.remaining = 0) THEN
        o_remaining := -2;
        RETURN;
    END IF;
    IF o_fresh THEN
        INSERT INTO clutch_rows VALUES
            (v_work.id, 'result', v_address, p_value), (v_work.id, 'info', v_address, p_info);
        DELETE FROM clutch_rows
        WHERE run_id = v_work.id AND kind = 'lease' AND key = v_address;
        IF v_held THEN
            DELETE FROM clutch_rows
            WHERE run_id = v_work.id AND kind = 'held' AND key = v_address;
            DELETE FROM clutch_rows
            WHERE run_id = v_work.id AND kind = 'child' AND split_part(key, ' ', 1) = v_address;
        END IF;
        IF p_values IS NOT NULL THEN
            PERFORM clutch_change(v_work.id, p_told->'changed', p_values);
        END IF;
        IF v_work.failing <> 0 OR v_work.dead <> 0 THEN
            v_failure := clutch_get(v_work.id, 'failure', v_address);
        END IF;
        IF v_failure IS NOT NULL THEN
            v_flags := clutch_flags(v_failure);
            v_work := clutch_count(v_work, v_flags[2], -1);
            UPDATE clutch_rows SET value = convert_to(v_flags[1] || ' ' || v_flags[2] || ' 1', 'UTF8')
                || substring(value FROM position('\x0a'::bytea IN value))
            WHERE run_id = v_work.id AND kind = 'failure' AND key = v_address;
            IF v_work.state = 'FAILED' AND v_work.dead = 0 THEN
                v_work.state := 'RUNNING'; v_work.ender := ''; v_work.ended_at := NULL;
            END IF;
        END IF;
        IF p_told->'next' <> 'null' AND v_work.state <> 'CANCELLED' THEN
            v_work := clutch_put_due(
                v_work, p_told->'next'->>0, (p_told->'next'->>1)::double precision
            );
        END IF;
        IF p_told->'settles' <> 'null' THEN
            v_work := clutch_settle(v_work, p_told->'settles', false);
        END IF;
        FOR v_each IN SELECT * FROM jsonb_array_elements(p_told->'barriers') LOOP
            IF (v_each->>'width')::bigint <> 1 THEN
                CONTINUE WHEN clutch_add(v_work.id, 'barrier', v_each->>'name')
                    <> (v_each->>'width')::bigint;
            END IF;
            IF v_each->'settles' <> 'null' THEN
                v_work := clutch_settle(v_work, v_each->'settles', false);
            END IF;
            IF v_each->'turn' <> 'null' THEN
                v_work := clutch_turn(v_work, v_each->'turn', false);
            END IF;
            IF v_each->>'then' <> '' AND v_work.state <> 'CANCELLED' THEN
                v_work := clutch_put_due(v_work, v_each->>'then', v_work.at_time);
            END IF;
        END LOOP;
        v_work.remaining := v_work.remaining - 1;
        IF v_work.remaining = 0 AND v_work.state = 'RUNNING' THEN
            v_work := clutch_end(v_work, 'SUCCEEDED', v_token, 'end SUCCEEDED');
        END IF;
        PERFORM clutch_touch(v_work, p_told->'kept');
    END IF;
    o_remaining := v_work.remaining;
    o_generation := v_work.generation;
    o_succeeded := v_work.state = 'SUCCEEDED' AND v_token <> '' AND v_work.ender = v_token;
    o_settled := nullif(v_work.settled, '{}');
    IF NOT o_fresh OR v_work.made <> '{}' THEN
        SELECT * INTO o_due, o_keys, o_pages FROM clutch_due(v_work, o_fresh, '');
    END IF;
    IF o_remaining > 0 THEN
        v_set := set_config('synchronous_commit', 'off', true);
        COMMIT;
        v_set := pg_logical_emit_message(true, 'clutch', ''); -- something to commit
    END IF;
END $$;
--;
-- Answers null, and does nothing, if the run is unusual.
CREATE PROCEDURE clutch_fail(
    p_told jsonb, p_failure bytea, INOUT o_recorded boolean, INOUT o_died boolean,
    INOUT o_settled text[], INOUT o_due text[], INOUT o_keys text[], INOUT o_pages bytea[]
)
LANGUAGE plpgsql AS $$
DECLARE
    v_address text := p_told->>'address';
    v_generation bigint := p_told->>'generation';
    v_attempt bigint := p_told->>'attempt';
    v_final bigint := p_told->>'final';
    v_token text := p_told->>'token';
    v_work clutch_work := clutch_lock(p_told);
    v_known bigint[];
    v_finished integer;
    v_each jsonb;
BEGIN
    o_recorded := false; o_died := false;
    IF v_work.id IS NULL THEN
        RETURN;
    END IF;
    IF clutch_is_unusual(v_work) THEN
        o_recorded := NULL;
        RETURN;
    END IF;
    DELETE FROM clutch_rows WHERE run_id = v_work.id AND kind = 'lease' AND key = v_address;
    IF v_work.generation <> v_generation THEN
        RETURN;
    END IF;
    v_known := clutch_flags(clutch_get(v_work.id, 'failure', v_address));
    -- A job that is dead stays so until it has a result.
    o_recorded := (coalesce(v_known[1], 0), coalesce(v_known[2], 0)) < (v_attempt, v_final)
        AND v_final >= coalesce(v_known[2], 0);
    IF o_recorded THEN
        v_finished := EXISTS (
            SELECT FROM clutch_rows
            WHERE run_id = v_work.id AND kind = 'result' AND key = v_address
        )::integer;
        IF v_known[3] = 0 THEN
            v_work := clutch_count(v_work, v_known[2], -1);
        END IF;
        INSERT INTO clutch_rows VALUES (
            v_work.id, 'failure', v_address,
            convert_to(concat_ws(' ', v_attempt, v_final, v_finished) || chr(10), 'UTF8')
                || p_failure
        ) ON CONFLICT (run_id, kind, key) DO UPDATE SET value = excluded.value;
        IF v_finished = 0 THEN
            v_work := clutch_count(v_work, v_final, 1);
            IF p_told->'retry' <> 'null' AND v_final = 0 AND v_work.state <> 'CANCELLED' THEN
                v_work := clutch_put_due(
                    v_work, p_told->'retry'->>0, (p_told->'retry'->>1)::double precision
                );
            END IF;
            IF v_final = 1 AND v_work.state = 'RUNNING' THEN
                v_work := clutch_end(v_work, 'FAILED', v_token, 'death ' || v_address);
            END IF;
        END IF;
        FOR v_each IN SELECT * FROM jsonb_array_elements(p_told->'settles') LOOP
            v_work := clutch_settle(v_work, v_each, true);
        END LOOP;
        IF v_final = 1 AND v_finished = 0 THEN
            FOR v_each IN SELECT * FROM jsonb_array_elements(p_told->'turns') LOOP
                v_work := clutch_turn(v_work, v_each, true);
            END LOOP;
        END IF;
        PERFORM clutch_touch(v_work, p_told->'kept');
    END IF;
    o_died := v_work.state = 'FAILED' AND v_token <> '' AND v_work.ender = v_token;
    o_settled := nullif(v_work.settled, '{}');
    -- What a later attempt has made due, whoever has recorded that one sends.
    IF o_recorded OR (v_known[1], v_known[2]) = (v_attempt, v_final) THEN
        SELECT * INTO o_due, o_keys, o_pages
        FROM clutch_due(v_work, o_recorded, coalesce(p_told->'retry'->>0, ''));
    END IF;
END $$;
--;
-- A run takes its rows with it.
CREATE FUNCTION clutch_delete_rows() RETURNS trigger
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM clutch_rows WHERE run_id = OLD.id;
    RETURN NULL;
END $$;
--;
CREATE TRIGGER clutch_delete_rows AFTER DELETE ON clutch_runs
FOR EACH ROW EXECUTE FUNCTION clutch_delete_rows();
