-- One function for each primitive that writes: one round trip, one transaction.
--
-- Each locks the row of the run first. Every statement of a volatile function sees what others have
-- committed before it (READ COMMITTED), so from there on a run has one writer, and the first result
-- wins. Parameters are p_, variables v_, what is returned o_. When a run has ended, whoever waits
-- for it is notified on the channel clutch_<id>.

CREATE OR REPLACE FUNCTION clutch_now() RETURNS double precision
LANGUAGE sql VOLATILE AS $$ SELECT extract(epoch FROM clock_timestamp())::double precision $$;
--;
-- Renews the time that a run is kept. It is kept a little longer than asked for, so that most
-- events need not write it.
CREATE OR REPLACE FUNCTION clutch_renew(
    p_id bigint, p_state text, p_expires_at double precision, p_now double precision,
    p_ttl double precision, p_result_ttl double precision
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_ttl double precision := CASE WHEN p_state = 'RUNNING' THEN p_ttl ELSE p_result_ttl END;
BEGIN
    IF p_expires_at < p_now + v_ttl THEN
        UPDATE clutch_run SET expires_at = p_now + v_ttl * 1.015625 WHERE id = p_id;
    END IF;
END $$;
--;
CREATE OR REPLACE FUNCTION clutch_create(
    p_prefix text, p_run text, p_name text, p_tags text, p_meta bytea, p_units bigint,
    p_jobs bigint, p_pages text[], p_page_values bytea[], p_data text[], p_data_values bytea[],
    p_ttl double precision, p_result_ttl double precision
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint;
    v_now double precision;
BEGIN
    DELETE FROM clutch_run
    WHERE prefix = p_prefix AND run = p_run AND expires_at <= clutch_now();
    v_now := clutch_now();
    INSERT INTO clutch_run (prefix, run, name, tags, meta, state, generation, jobs, remaining,
        created_at, updated_at, ended_at, expires_at)
    VALUES (p_prefix, p_run, p_name, p_tags, p_meta,
        CASE WHEN p_units = 0 THEN 'SUCCEEDED' ELSE 'RUNNING' END, 0, p_jobs, p_units,
        v_now, v_now, CASE WHEN p_units = 0 THEN v_now END,
        v_now + CASE WHEN p_units = 0 THEN p_result_ttl ELSE p_ttl END)
    ON CONFLICT (prefix, run) DO NOTHING
    RETURNING id INTO v_id;
    IF v_id IS NULL THEN
        RETURN false;
    END IF;
    INSERT INTO clutch_page SELECT v_id, given.* FROM unnest(p_pages, p_page_values) AS given;
    INSERT INTO clutch_data SELECT v_id, given.* FROM unnest(p_data, p_data_values) AS given;
    RETURN true;
END $$;
--;
-- Returns the verdict (1 run, 2 done, 3 drop, 4 give up) and what is held for the address.
CREATE OR REPLACE FUNCTION clutch_begin(
    p_prefix text, p_run text, p_address text, p_slot text, p_generation bigint, p_limit bigint,
    p_ttl double precision, p_result_ttl double precision,
    OUT o_verdict integer, OUT o_held bytea
)
LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint;
    v_state text;
    v_generation bigint;
    v_expires_at double precision;
    v_starts bigint;
    v_now double precision;
BEGIN
    SELECT id, state, generation, expires_at INTO v_id, v_state, v_generation, v_expires_at
    FROM clutch_run WHERE prefix = p_prefix AND run = p_run AND expires_at > clutch_now()
    FOR UPDATE;
    IF v_id IS NULL OR v_state = 'CANCELLED' OR v_generation <> p_generation THEN
        o_verdict := 3;
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM clutch_result WHERE run_id = v_id AND slot = p_slot) THEN
        o_verdict := 2;
        RETURN;
    END IF;
    v_now := clutch_now();
    PERFORM clutch_renew(v_id, v_state, v_expires_at, v_now, p_ttl, p_result_ttl);
    SELECT starts, held INTO v_starts, o_held
    FROM clutch_job WHERE run_id = v_id AND address = p_address;
    o_verdict := 1;
    IF o_held IS NOT NULL THEN
        RETURN;
    END IF;
    IF v_starts >= p_limit THEN
        o_verdict := 4;
        RETURN;
    END IF;
    INSERT INTO clutch_job AS job (run_id, address, starts, started_at)
    VALUES (v_id, p_address, 1, v_now)
    ON CONFLICT (run_id, address)
    DO UPDATE SET starts = job.starts + 1, started_at = excluded.started_at;
END $$;
--;
-- Counts a member, once. Returns whether p_who reports (it was the first when all had settled and one
-- had failed), and whether p_who closes (it was the first when all had settled).
CREATE OR REPLACE FUNCTION clutch_settle(
    p_id bigint, p_kind text, p_name text, p_member text, p_width bigint, p_failed boolean,
    p_who text, OUT o_reports boolean, OUT o_closes boolean
)
LANGUAGE plpgsql AS $$
DECLARE
    v_new integer;
BEGIN
    INSERT INTO clutch_member (run_id, kind, name, member)
    VALUES (p_id, p_kind, p_name, p_member) ON CONFLICT DO NOTHING;
    v_new := FOUND::integer;
    INSERT INTO clutch_tally AS tally (run_id, kind, name, settled, failed, reporter, closer)
    VALUES (p_id, p_kind, p_name, 1, p_failed,
        CASE WHEN p_width <= 1 AND p_failed THEN p_who END,
        CASE WHEN p_width <= 1 THEN p_who END)
    ON CONFLICT (run_id, kind, name) DO UPDATE SET
        settled = tally.settled + v_new,
        failed = tally.failed OR p_failed,
        reporter = coalesce(tally.reporter, CASE
            WHEN tally.settled + v_new >= p_width AND (tally.failed OR p_failed) THEN p_who END),
        closer = coalesce(tally.closer, CASE
            WHEN tally.settled + v_new >= p_width THEN p_who END)
    RETURNING coalesce(tally.reporter = p_who, false), coalesce(tally.closer = p_who, false)
    INTO o_reports, o_closes;
END $$;
--;
CREATE OR REPLACE FUNCTION clutch_complete(
    p_prefix text, p_run text, p_address text, p_slot text, p_value bytea, p_generation bigint,
    p_token text, p_job boolean, p_step text, p_member text, p_width bigint, p_barrier text,
    p_slots bigint, p_keys text[], p_values bytea[], p_info bytea,
    p_ttl double precision, p_result_ttl double precision,
    OUT o_remaining bigint, OUT o_fresh boolean, OUT o_succeeded boolean, OUT o_report boolean,
    OUT o_settled boolean, OUT o_joined boolean
)
LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint;
    v_state text;
    v_before text;
    v_generation bigint;
    v_failing bigint;
    v_dead bigint;
    v_ender text;
    v_expires_at double precision;
    v_now double precision;
    v_failed boolean;
    v_final boolean;
    v_finished boolean;
BEGIN
    SELECT id, state, state, generation, remaining, failing, dead, ender, expires_at
    INTO v_id, v_state, v_before, v_generation, o_remaining, v_failing, v_dead, v_ender, v_expires_at
    FROM clutch_run WHERE prefix = p_prefix AND run = p_run AND expires_at > clutch_now()
    FOR UPDATE;
    IF v_id IS NULL THEN
        o_remaining := -1;
        RETURN;
    END IF;
    v_now := clutch_now();
    INSERT INTO clutch_result (run_id, slot, value)
    VALUES (v_id, p_slot, p_value) ON CONFLICT DO NOTHING;
    o_fresh := FOUND;
    IF o_fresh THEN
        o_remaining := o_remaining - 1;
        SELECT attempt IS NOT NULL, final, finished INTO v_failed, v_final, v_finished
        FROM clutch_job WHERE run_id = v_id AND address = p_address;
        IF v_failed AND NOT v_finished THEN
            v_dead := v_dead - v_final::integer;
            v_failing := v_failing - (NOT v_final)::integer;
            IF v_state = 'FAILED' AND v_dead = 0 THEN
                v_state := 'RUNNING';
            END IF;
        END IF;
        INSERT INTO clutch_job AS job (run_id, address, info) VALUES (v_id, p_address, p_info)
        ON CONFLICT (run_id, address) DO UPDATE SET starts = 0, started_at = NULL, held = NULL,
            info = excluded.info, finished = job.attempt IS NOT NULL;
        IF cardinality(p_keys) > 0 THEN
            DELETE FROM clutch_data WHERE run_id = v_id AND name = ANY (p_keys);
            INSERT INTO clutch_data (run_id, name, value)
            SELECT v_id, given.name, given.value
            FROM unnest(p_keys, p_values) AS given (name, value) WHERE given.value IS NOT NULL;
        END IF;
        IF o_remaining = 0 AND v_state = 'RUNNING' THEN
            v_state := 'SUCCEEDED';
            v_ender := p_token;
            PERFORM pg_notify('clutch_' || v_id, '');
        END IF;
        UPDATE clutch_run SET
            state = v_state,
            remaining = o_remaining,
            done = done + p_job::integer,
            failing = v_failing,
            dead = v_dead,
            updated_at = v_now,
            ended_at = CASE WHEN v_state = v_before THEN ended_at
                WHEN v_state <> 'RUNNING' THEN v_now END,
            ender = v_ender,
            expires_at = CASE WHEN v_state = v_before THEN expires_at ELSE v_now END
        WHERE id = v_id;
        IF v_state <> v_before THEN
            v_expires_at := v_now;
        END IF;
    END IF;
    o_succeeded := v_state = 'SUCCEEDED' AND v_ender = p_token;
    IF v_generation = p_generation THEN
        IF p_step IS NOT NULL THEN
            SELECT o_reports, o_closes INTO o_report, o_settled
            FROM clutch_settle(v_id, 'step', p_step, p_member, p_width, false, p_token);
        END IF;
        IF p_barrier IS NOT NULL THEN
            SELECT o_closes INTO o_joined
            FROM clutch_settle(v_id, 'barrier', p_barrier, p_slot, p_slots, false, p_address);
        END IF;
    END IF;
    PERFORM clutch_renew(v_id, v_state, v_expires_at, v_now, p_ttl, p_result_ttl);
END $$;
--;
CREATE OR REPLACE FUNCTION clutch_fail(
    p_prefix text, p_run text, p_address text, p_slot text, p_failure bytea, p_attempt bigint,
    p_final boolean, p_generation bigint, p_token text, p_steps text[], p_members text[],
    p_widths bigint[], p_louds boolean[], p_ttl double precision, p_result_ttl double precision,
    OUT o_recorded boolean, OUT o_died boolean, OUT o_reports boolean[], OUT o_settled boolean[]
)
LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint;
    v_state text;
    v_before text;
    v_generation bigint;
    v_ender text;
    v_expires_at double precision;
    v_now double precision;
    v_attempt bigint;
    v_final boolean;
    v_counted boolean;
    v_finished boolean;
    v_result boolean;
    v_report boolean;
    v_closes boolean;
BEGIN
    o_recorded := false;
    o_died := false;
    SELECT id, state, state, generation, ender, expires_at
    INTO v_id, v_state, v_before, v_generation, v_ender, v_expires_at
    FROM clutch_run WHERE prefix = p_prefix AND run = p_run AND expires_at > clutch_now()
    FOR UPDATE;
    IF v_id IS NULL OR v_generation <> p_generation THEN
        RETURN;
    END IF;
    v_now := clutch_now();
    SELECT attempt, final, finished, attempt IS NOT NULL AND NOT finished
    INTO v_attempt, v_final, v_finished, v_counted
    FROM clutch_job WHERE run_id = v_id AND address = p_address;
    IF v_attempt IS NULL OR (v_attempt, v_final) < (p_attempt, p_final) THEN
        o_recorded := true;
        v_counted := coalesce(v_counted, false);
        v_result := EXISTS (SELECT FROM clutch_result WHERE run_id = v_id AND slot = p_slot);
        v_finished := coalesce(v_finished, false) OR v_result;
        INSERT INTO clutch_job (run_id, address, attempt, final, failure, finished)
        VALUES (v_id, p_address, p_attempt, p_final, p_failure, v_finished)
        ON CONFLICT (run_id, address) DO UPDATE SET
            attempt = excluded.attempt, final = excluded.final, failure = excluded.failure,
            finished = excluded.finished, starts = 0, started_at = NULL;
        IF p_final AND NOT v_result AND v_state = 'RUNNING' THEN
            v_state := 'FAILED';
            v_ender := p_token;
            v_expires_at := v_now;
            PERFORM pg_notify('clutch_' || v_id, '');
        END IF;
        UPDATE clutch_run SET
            state = v_state,
            failing = failing - (v_counted AND NOT v_final)::integer
                + (NOT v_finished AND NOT p_final)::integer,
            dead = dead - (v_counted AND v_final)::integer
                + (NOT v_finished AND p_final)::integer,
            updated_at = v_now,
            ended_at = CASE WHEN v_state = v_before THEN ended_at ELSE v_now END,
            ender = v_ender,
            expires_at = CASE WHEN v_state = v_before THEN expires_at ELSE v_now END
        WHERE id = v_id;
    END IF;
    o_died := v_state = 'FAILED' AND coalesce(v_ender = p_token, false);
    FOR i IN 1 .. cardinality(p_steps) LOOP
        SELECT s.o_reports, s.o_closes INTO v_report, v_closes FROM clutch_settle(
            v_id, 'step', p_steps[i], p_members[i], p_widths[i], p_louds[i], p_token) AS s;
        o_reports[i] := v_report;
        o_settled[i] := v_closes;
    END LOOP;
    PERFORM clutch_renew(v_id, v_state, v_expires_at, v_now, p_ttl, p_result_ttl);
END $$;
--;
CREATE OR REPLACE FUNCTION clutch_hold(
    p_prefix text, p_run text, p_address text, p_held bytea,
    p_ttl double precision, p_result_ttl double precision
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint;
    v_state text;
    v_expires_at double precision;
BEGIN
    SELECT id, state, expires_at INTO v_id, v_state, v_expires_at
    FROM clutch_run WHERE prefix = p_prefix AND run = p_run AND expires_at > clutch_now()
    FOR UPDATE;
    IF v_id IS NULL THEN
        RETURN;
    END IF;
    INSERT INTO clutch_job (run_id, address, held) VALUES (v_id, p_address, p_held)
    ON CONFLICT (run_id, address) DO UPDATE
    SET held = excluded.held, starts = 0, started_at = NULL;
    PERFORM clutch_renew(v_id, v_state, v_expires_at, clutch_now(), p_ttl, p_result_ttl);
END $$;
--;
CREATE OR REPLACE FUNCTION clutch_take(
    p_prefix text, p_run text, p_name text, p_lane text, p_after bigint, p_generation bigint,
    p_ttl double precision, p_result_ttl double precision
) RETURNS bigint
LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint;
    v_state text;
    v_generation bigint;
    v_expires_at double precision;
    v_previous bigint;
    v_number bigint;
BEGIN
    SELECT id, state, generation, expires_at INTO v_id, v_state, v_generation, v_expires_at
    FROM clutch_run WHERE prefix = p_prefix AND run = p_run AND expires_at > clutch_now()
    FOR UPDATE;
    IF v_id IS NULL OR v_state = 'CANCELLED' OR v_generation <> p_generation THEN
        RETURN -1;
    END IF;
    PERFORM clutch_renew(v_id, v_state, v_expires_at, clutch_now(), p_ttl, p_result_ttl);
    SELECT previous, number INTO v_previous, v_number FROM clutch_lane
    WHERE run_id = v_id AND name = p_name AND lane = p_lane;
    IF p_after <> coalesce(v_number, -1) THEN
        RETURN CASE WHEN p_after = v_previous THEN v_number ELSE -1 END;
    END IF;
    -- Numbers rise, so the last one taken is the last of some lane.
    SELECT coalesce(max(number) + 1, 0) INTO v_number
    FROM clutch_lane WHERE run_id = v_id AND name = p_name;
    INSERT INTO clutch_lane (run_id, name, lane, previous, number)
    VALUES (v_id, p_name, p_lane, p_after, v_number)
    ON CONFLICT (run_id, name, lane) DO UPDATE
    SET previous = excluded.previous, number = excluded.number;
    RETURN v_number;
END $$;
--;
CREATE OR REPLACE FUNCTION clutch_transition(
    p_prefix text, p_run text, p_sources text[], p_target text, p_generation bigint,
    p_ttl double precision, p_result_ttl double precision
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    v_id bigint;
    v_state text;
    v_generation bigint;
    v_remaining bigint;
    v_now double precision;
BEGIN
    SELECT id, state, generation, remaining INTO v_id, v_state, v_generation, v_remaining
    FROM clutch_run WHERE prefix = p_prefix AND run = p_run AND expires_at > clutch_now()
    FOR UPDATE;
    IF v_id IS NULL OR v_generation <> p_generation OR v_state <> ALL (p_sources) THEN
        RETURN false;
    END IF;
    v_now := clutch_now();
    v_state := p_target;
    IF p_target = 'RUNNING' THEN
        v_generation := v_generation + 1;
        UPDATE clutch_job SET starts = 0, started_at = NULL, attempt = NULL, final = false,
            failure = NULL, finished = false WHERE run_id = v_id;
        DELETE FROM clutch_member WHERE run_id = v_id;
        DELETE FROM clutch_tally WHERE run_id = v_id;
        DELETE FROM clutch_lane WHERE run_id = v_id;
        IF v_remaining = 0 THEN
            v_state := 'SUCCEEDED';
        END IF;
    END IF;
    UPDATE clutch_run SET
        state = v_state,
        generation = v_generation,
        failing = CASE WHEN p_target = 'RUNNING' THEN 0 ELSE failing END,
        dead = CASE WHEN p_target = 'RUNNING' THEN 0 ELSE dead END,
        updated_at = v_now,
        ended_at = CASE WHEN v_state = 'RUNNING' THEN NULL ELSE v_now END,
        ender = NULL,
        expires_at = v_now + CASE WHEN v_state = 'RUNNING' THEN p_ttl ELSE p_result_ttl END
    WHERE id = v_id;
    IF v_state <> 'RUNNING' THEN
        PERFORM pg_notify('clutch_' || v_id, '');
    END IF;
    RETURN true;
END $$;
