-- What a worker asks of the store, each as one statement. The rules are those of the docstrings of
-- celery_clutch.stores.base.ResultStore; store.py has the same for databases without PL/pgSQL.
--
-- Every function that changes a run locks its row first. Arguments start with a_, variables with v_.

CREATE FUNCTION celery_clutch_django_now() RETURNS double precision
LANGUAGE sql VOLATILE AS $$ SELECT extract(epoch FROM clock_timestamp())::double precision $$;

-- The run, locked; its id is null when there is none.
CREATE FUNCTION celery_clutch_django_lock(a_prefix text, a_run text) RETURNS celery_clutch_django_run
LANGUAGE plpgsql AS $$
DECLARE
  v_run celery_clutch_django_run;
BEGIN
  SELECT * INTO v_run FROM celery_clutch_django_run
    WHERE prefix = a_prefix AND run = a_run FOR NO KEY UPDATE;
  IF v_run.expires_at <= celery_clutch_django_now() THEN
    RETURN NULL;
  END IF;
  RETURN v_run;
END $$;

-- Write back what has changed of a run, and renew the time that it is kept. A hundredth of that
-- time is not worth a write to an index.
CREATE FUNCTION celery_clutch_django_touch(
  v_run celery_clutch_django_run, a_ttl double precision, a_result_ttl double precision
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_ttl double precision := CASE v_run.state WHEN 'RUNNING' THEN a_ttl ELSE a_result_ttl END;
  v_expires double precision := v_run.updated_at + v_ttl;
BEGIN
  IF abs(v_expires - v_run.expires_at) < v_ttl / 100 THEN
    v_expires := v_run.expires_at;
  END IF;
  UPDATE celery_clutch_django_run SET
    state = v_run.state, generation = v_run.generation, remaining = v_run.remaining,
    done = v_run.done, failing = v_run.failing, dead = v_run.dead,
    updated_at = v_run.updated_at, ended_at = v_run.ended_at, ender = v_run.ender,
    expires_at = v_expires
  WHERE id = v_run.id;
END $$;

-- Forget what belongs to a generation.
CREATE FUNCTION celery_clutch_django_forget_tallies(a_id bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  DELETE FROM celery_clutch_django_member m USING celery_clutch_django_tally t
    WHERE m.tally_id = t.id AND t.run_id = a_id;
  DELETE FROM celery_clutch_django_tally WHERE run_id = a_id;
END $$;

CREATE FUNCTION celery_clutch_django_erase(a_id bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
  PERFORM celery_clutch_django_forget_tallies(a_id);
  DELETE FROM celery_clutch_django_job WHERE run_id = a_id;
  DELETE FROM celery_clutch_django_result WHERE run_id = a_id;
  DELETE FROM celery_clutch_django_datum WHERE run_id = a_id;
  DELETE FROM celery_clutch_django_page WHERE run_id = a_id;
  DELETE FROM celery_clutch_django_tag WHERE run_id = a_id;
  DELETE FROM celery_clutch_django_run WHERE id = a_id;
END $$;

-- Whether there was a run to delete.
CREATE FUNCTION celery_clutch_django_delete(a_prefix text, a_run text) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_run celery_clutch_django_run := celery_clutch_django_lock(a_prefix, a_run);
BEGIN
  IF v_run.id IS NULL THEN
    RETURN false;
  END IF;
  PERFORM celery_clutch_django_erase(v_run.id);
  RETURN true;
END $$;

-- Whether the run is new.
CREATE FUNCTION celery_clutch_django_create(
  a_prefix text, a_run text, a_meta bytea, a_units integer, a_jobs integer, a_name text,
  a_tags text[], a_page_keys text[], a_pages bytea[], a_data_keys text[], a_data bytea[],
  a_ttl double precision, a_result_ttl double precision
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_id bigint;
  v_now double precision := celery_clutch_django_now();
BEGIN
  SELECT id INTO v_id FROM celery_clutch_django_run
    WHERE prefix = a_prefix AND run = a_run AND expires_at <= v_now FOR UPDATE;
  IF v_id IS NOT NULL THEN
    PERFORM celery_clutch_django_erase(v_id);
  END IF;
  INSERT INTO celery_clutch_django_run (
    prefix, run, name, state, generation, remaining, jobs, done, failing, dead,
    created_at, updated_at, ended_at, expires_at, meta
  ) VALUES (
    a_prefix, a_run, a_name, CASE a_units WHEN 0 THEN 'SUCCEEDED' ELSE 'RUNNING' END, 0, a_units,
    a_jobs, 0, 0, 0, v_now, v_now, CASE a_units WHEN 0 THEN v_now END,
    v_now + CASE a_units WHEN 0 THEN a_result_ttl ELSE a_ttl END, a_meta
  ) ON CONFLICT (prefix, run) DO NOTHING RETURNING id INTO v_id;
  IF NOT FOUND THEN
    RETURN false;
  END IF;
  INSERT INTO celery_clutch_django_tag (run_id, position, tag)
    SELECT v_id, each.position - 1, each.tag
    FROM unnest(a_tags) WITH ORDINALITY AS each (tag, position);
  INSERT INTO celery_clutch_django_page (run_id, key, page)
    SELECT v_id, each.key, each.page FROM unnest(a_page_keys, a_pages) AS each (key, page);
  INSERT INTO celery_clutch_django_datum (run_id, key, value)
    SELECT v_id, each.key, each.value FROM unnest(a_data_keys, a_data) AS each (key, value);
  RETURN true;
END $$;

-- The verdict (1 run, 2 done, 3 drop, 4 give up), and what is held.
CREATE FUNCTION celery_clutch_django_begin(
  a_prefix text, a_run text, a_address text, a_slot text, a_generation integer, a_limit integer,
  a_ttl double precision, a_result_ttl double precision, OUT o_verdict integer, OUT o_held bytea
)
LANGUAGE plpgsql AS $$
DECLARE
  v_run celery_clutch_django_run := celery_clutch_django_lock(a_prefix, a_run);
  v_starts integer;
  v_ttl double precision;
BEGIN
  IF v_run.id IS NULL OR v_run.state = 'CANCELLED' OR v_run.generation <> a_generation THEN
    o_verdict := 3;
    RETURN;
  END IF;
  PERFORM 1 FROM celery_clutch_django_result WHERE run_id = v_run.id AND slot = a_slot;
  IF FOUND THEN
    o_verdict := 2;
    RETURN;
  END IF;
  o_verdict := 1;
  SELECT starts, held INTO v_starts, o_held
    FROM celery_clutch_django_job WHERE run_id = v_run.id AND address = a_address;
  IF o_held IS NULL AND v_starts >= a_limit THEN
    o_verdict := 4;
  ELSIF o_held IS NULL THEN
    INSERT INTO celery_clutch_django_job AS job (
      run_id, address, starts, started_at, final, finished
    ) VALUES (v_run.id, a_address, 1, celery_clutch_django_now(), false, false)
    ON CONFLICT (run_id, address) DO UPDATE
      SET starts = job.starts + 1, started_at = excluded.started_at;
  END IF;
  v_ttl := CASE v_run.state WHEN 'RUNNING' THEN a_ttl ELSE a_result_ttl END;
  IF celery_clutch_django_now() + v_ttl - v_run.expires_at > v_ttl / 100 THEN
    v_run.updated_at := celery_clutch_django_now();
    PERFORM celery_clutch_django_touch(v_run, a_ttl, a_result_ttl);
  END IF;
END $$;

-- Count a member of a step: whether the token is to report it, and whether it settled it.
CREATE FUNCTION celery_clutch_django_settle(
  a_id bigint, a_step text, a_member text, a_width integer, a_failed boolean, a_token text,
  OUT o_report boolean, OUT o_settled boolean
)
LANGUAGE plpgsql AS $$
DECLARE
  v_step celery_clutch_django_tally;
BEGIN
  INSERT INTO celery_clutch_django_tally AS tally (run_id, kind, name, count, failed)
    VALUES (a_id, 's', a_step, 0, a_failed)
    ON CONFLICT (run_id, kind, name) DO UPDATE SET failed = tally.failed OR excluded.failed
    RETURNING tally.* INTO v_step;
  INSERT INTO celery_clutch_django_member (tally_id, name) VALUES (v_step.id, a_member)
    ON CONFLICT (tally_id, name) DO NOTHING;
  IF FOUND THEN
    v_step.count := v_step.count + 1;
  END IF;
  IF v_step.count >= a_width THEN
    v_step.closer := coalesce(v_step.closer, a_token);
    IF v_step.failed THEN
      v_step.reporter := coalesce(v_step.reporter, a_token);
    END IF;
  END IF;
  UPDATE celery_clutch_django_tally
    SET count = v_step.count, closer = v_step.closer, reporter = v_step.reporter
    WHERE id = v_step.id;
  o_report := v_step.count >= a_width AND coalesce(v_step.reporter = a_token, false);
  o_settled := v_step.count >= a_width AND coalesce(v_step.closer = a_token, false);
END $$;

-- Count a slot in a barrier: whether this address is the one that opens it.
CREATE FUNCTION celery_clutch_django_join(
  a_id bigint, a_barrier text, a_width integer, a_slot text, a_address text
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_barrier celery_clutch_django_tally;
BEGIN
  INSERT INTO celery_clutch_django_tally AS tally (run_id, kind, name, count, failed)
    VALUES (a_id, 'b', a_barrier, 0, false)
    ON CONFLICT (run_id, kind, name) DO UPDATE SET count = tally.count
    RETURNING tally.* INTO v_barrier;
  INSERT INTO celery_clutch_django_member (tally_id, name) VALUES (v_barrier.id, a_slot)
    ON CONFLICT (tally_id, name) DO NOTHING;
  IF FOUND THEN
    v_barrier.count := v_barrier.count + 1;
  END IF;
  IF v_barrier.count >= a_width THEN
    v_barrier.closer := coalesce(v_barrier.closer, a_address);
  END IF;
  UPDATE celery_clutch_django_tally SET count = v_barrier.count, closer = v_barrier.closer
    WHERE id = v_barrier.id;
  RETURN coalesce(v_barrier.closer = a_address, false);
END $$;

-- What is remaining (-1 without a run), and what this call did. No step and no barrier are null.
CREATE FUNCTION celery_clutch_django_complete(
  a_prefix text, a_run text, a_address text, a_slot text, a_value bytea, a_generation integer,
  a_token text, a_job boolean, a_step text, a_member text, a_width integer, a_barrier text,
  a_slots integer, a_keys text[], a_values bytea[], a_info bytea, a_ttl double precision,
  a_result_ttl double precision, OUT o_remaining integer, OUT o_fresh boolean,
  OUT o_succeeded boolean, OUT o_report boolean, OUT o_settled boolean, OUT o_joined boolean
)
LANGUAGE plpgsql AS $$
DECLARE
  v_run celery_clutch_django_run := celery_clutch_django_lock(a_prefix, a_run);
  v_job celery_clutch_django_job;
BEGIN
  o_remaining := coalesce(v_run.remaining, -1);
  o_fresh := false;
  o_succeeded := false;
  o_report := false;
  o_settled := false;
  o_joined := false;
  IF v_run.id IS NULL THEN
    RETURN;
  END IF;
  INSERT INTO celery_clutch_django_result (run_id, slot, value) VALUES (v_run.id, a_slot, a_value)
    ON CONFLICT (run_id, slot) DO NOTHING;
  IF FOUND THEN
    o_fresh := true;
    v_run.remaining := v_run.remaining - 1;
    v_run.done := v_run.done + a_job::integer;
    v_run.updated_at := celery_clutch_django_now();
    SELECT * INTO v_job FROM celery_clutch_django_job
      WHERE run_id = v_run.id AND address = a_address;
    IF v_job.attempt IS NOT NULL AND NOT v_job.finished THEN
      v_run.dead := v_run.dead - v_job.final::integer;
      v_run.failing := v_run.failing - (NOT v_job.final)::integer;
    END IF;
    IF v_job.attempt IS NOT NULL AND v_run.state = 'FAILED' AND v_run.dead = 0 THEN
      v_run.state := 'RUNNING';
      v_run.ended_at := NULL;
    END IF;
    IF v_job.id IS NULL THEN
      INSERT INTO celery_clutch_django_job (run_id, address, starts, final, finished, info)
        VALUES (v_run.id, a_address, 0, false, false, a_info);
    ELSE
      UPDATE celery_clutch_django_job
        SET starts = 0, started_at = NULL, held = NULL, info = a_info,
          finished = attempt IS NOT NULL
        WHERE id = v_job.id;
    END IF;
    IF cardinality(a_keys) > 0 THEN
      DELETE FROM celery_clutch_django_datum WHERE run_id = v_run.id AND key = ANY (a_keys);
      INSERT INTO celery_clutch_django_datum (run_id, key, value)
        SELECT v_run.id, each.key, each.value FROM unnest(a_keys, a_values) AS each (key, value)
        WHERE each.value IS NOT NULL;
    END IF;
    IF v_run.remaining = 0 AND v_run.state = 'RUNNING' THEN
      v_run.state := 'SUCCEEDED';
      v_run.ended_at := v_run.updated_at;
      v_run.ender := a_token;
    END IF;
    PERFORM celery_clutch_django_touch(v_run, a_ttl, a_result_ttl);
  END IF;
  o_remaining := v_run.remaining;
  o_succeeded := v_run.state = 'SUCCEEDED' AND coalesce(v_run.ender = a_token, false);
  IF v_run.generation <> a_generation THEN
    RETURN;
  END IF;
  IF a_step IS NOT NULL THEN
    SELECT told.o_report, told.o_settled INTO o_report, o_settled
      FROM celery_clutch_django_settle(v_run.id, a_step, a_member, a_width, false, a_token) AS told;
  END IF;
  IF a_barrier IS NOT NULL THEN
    o_joined := celery_clutch_django_join(v_run.id, a_barrier, a_slots, a_slot, a_address);
  END IF;
END $$;

-- Whether it was news, whether the run died of it, and the steps to report and that are settled.
CREATE FUNCTION celery_clutch_django_fail(
  a_prefix text, a_run text, a_address text, a_slot text, a_failure bytea, a_attempt integer,
  a_final boolean, a_generation integer, a_token text, a_steps text[], a_members text[],
  a_widths integer[], a_louds boolean[], a_ttl double precision, a_result_ttl double precision,
  OUT o_recorded boolean, OUT o_died boolean, OUT o_reports text[], OUT o_settled text[]
)
LANGUAGE plpgsql AS $$
DECLARE
  v_run celery_clutch_django_run := celery_clutch_django_lock(a_prefix, a_run);
  v_job celery_clutch_django_job;
  v_has_result boolean;
  v_finished boolean;
  v_told record;
BEGIN
  o_recorded := false;
  o_died := false;
  o_reports := '{}';
  o_settled := '{}';
  IF v_run.id IS NULL OR v_run.generation <> a_generation THEN
    RETURN;
  END IF;
  SELECT * INTO v_job FROM celery_clutch_django_job WHERE run_id = v_run.id AND address = a_address;
  IF v_job.attempt IS NULL OR (v_job.attempt, v_job.final) < (a_attempt, a_final) THEN
    o_recorded := true;
    v_run.updated_at := celery_clutch_django_now();
    PERFORM 1 FROM celery_clutch_django_result WHERE run_id = v_run.id AND slot = a_slot;
    v_has_result := FOUND;
    v_finished := v_has_result OR coalesce(v_job.finished, false);
    IF v_job.attempt IS NOT NULL AND NOT v_job.finished THEN
      v_run.dead := v_run.dead - v_job.final::integer;
      v_run.failing := v_run.failing - (NOT v_job.final)::integer;
    END IF;
    IF NOT v_finished THEN
      v_run.dead := v_run.dead + a_final::integer;
      v_run.failing := v_run.failing + (NOT a_final)::integer;
    END IF;
    INSERT INTO celery_clutch_django_job (
      run_id, address, starts, attempt, final, failure, finished
    ) VALUES (v_run.id, a_address, 0, a_attempt, a_final, a_failure, v_finished)
    ON CONFLICT (run_id, address) DO UPDATE
      SET starts = 0, started_at = NULL, attempt = excluded.attempt, final = excluded.final,
        failure = excluded.failure, finished = excluded.finished;
    IF a_final AND NOT v_has_result AND v_run.state = 'RUNNING' THEN
      v_run.state := 'FAILED';
      v_run.ended_at := v_run.updated_at;
      v_run.ender := a_token;
    END IF;
    PERFORM celery_clutch_django_touch(v_run, a_ttl, a_result_ttl);
  END IF;
  o_died := v_run.state = 'FAILED' AND coalesce(v_run.ender = a_token, false);
  FOR v_index IN 1 .. cardinality(a_steps) LOOP
    SELECT * INTO v_told FROM celery_clutch_django_settle(
      v_run.id, a_steps[v_index], a_members[v_index], a_widths[v_index], a_louds[v_index], a_token);
    IF v_told.o_report THEN
      o_reports := o_reports || a_steps[v_index];
    END IF;
    IF v_told.o_settled THEN
      o_settled := o_settled || a_steps[v_index];
    END IF;
  END LOOP;
END $$;

CREATE FUNCTION celery_clutch_django_hold(
  a_prefix text, a_run text, a_address text, a_held bytea,
  a_ttl double precision, a_result_ttl double precision
) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
  v_run celery_clutch_django_run := celery_clutch_django_lock(a_prefix, a_run);
BEGIN
  IF v_run.id IS NULL THEN
    RETURN;
  END IF;
  INSERT INTO celery_clutch_django_job (run_id, address, starts, final, finished, held)
    VALUES (v_run.id, a_address, 0, false, false, a_held)
    ON CONFLICT (run_id, address) DO UPDATE
      SET starts = 0, started_at = NULL, held = excluded.held;
  v_run.updated_at := celery_clutch_django_now();
  PERFORM celery_clutch_django_touch(v_run, a_ttl, a_result_ttl);
END $$;

-- The number; -1 for a lane that is further on, and where begin would say drop.
CREATE FUNCTION celery_clutch_django_take(
  a_prefix text, a_run text, a_key text, a_lane text, a_after integer, a_generation integer,
  a_ttl double precision, a_result_ttl double precision
) RETURNS integer
LANGUAGE plpgsql AS $$
DECLARE
  v_run celery_clutch_django_run := celery_clutch_django_lock(a_prefix, a_run);
  v_counter celery_clutch_django_tally;
  v_last celery_clutch_django_member;
BEGIN
  IF v_run.id IS NULL OR v_run.state = 'CANCELLED' OR v_run.generation <> a_generation THEN
    RETURN -1;
  END IF;
  INSERT INTO celery_clutch_django_tally AS tally (run_id, kind, name, count, failed)
    VALUES (v_run.id, 'c', a_key, 0, false)
    ON CONFLICT (run_id, kind, name) DO UPDATE SET count = tally.count
    RETURNING tally.* INTO v_counter;
  SELECT * INTO v_last FROM celery_clutch_django_member
    WHERE tally_id = v_counter.id AND name = a_lane;
  IF coalesce(v_last.number, -1) = a_after THEN
    v_last.number := v_counter.count;
    INSERT INTO celery_clutch_django_member (tally_id, name, number, previous)
      VALUES (v_counter.id, a_lane, v_last.number, a_after)
      ON CONFLICT (tally_id, name) DO UPDATE
        SET number = excluded.number, previous = excluded.previous;
    UPDATE celery_clutch_django_tally SET count = count + 1 WHERE id = v_counter.id;
  ELSIF v_last.previous IS DISTINCT FROM a_after THEN
    RETURN -1;
  END IF;
  v_run.updated_at := celery_clutch_django_now();
  PERFORM celery_clutch_django_touch(v_run, a_ttl, a_result_ttl);
  RETURN v_last.number;
END $$;

-- Whether the run moved.
CREATE FUNCTION celery_clutch_django_transition(
  a_prefix text, a_run text, a_sources text[], a_target text, a_generation integer,
  a_ttl double precision, a_result_ttl double precision
) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
  v_run celery_clutch_django_run := celery_clutch_django_lock(a_prefix, a_run);
BEGIN
  IF v_run.id IS NULL OR v_run.generation <> a_generation OR NOT v_run.state = ANY (a_sources) THEN
    RETURN false;
  END IF;
  v_run.updated_at := celery_clutch_django_now();
  v_run.state := a_target;
  v_run.ender := NULL;
  v_run.ended_at := v_run.updated_at;
  IF a_target = 'RUNNING' THEN
    v_run.generation := v_run.generation + 1;
    v_run.failing := 0;
    v_run.dead := 0;
    UPDATE celery_clutch_django_job
      SET starts = 0, started_at = NULL, attempt = NULL, final = false, failure = NULL,
        finished = false
      WHERE run_id = v_run.id AND (starts > 0 OR attempt IS NOT NULL);
    PERFORM celery_clutch_django_forget_tallies(v_run.id);
    IF v_run.remaining = 0 THEN
      v_run.state := 'SUCCEEDED';
    ELSE
      v_run.ended_at := NULL;
    END IF;
  END IF;
  PERFORM celery_clutch_django_touch(v_run, a_ttl, a_result_ttl);
  RETURN true;
END $$;
