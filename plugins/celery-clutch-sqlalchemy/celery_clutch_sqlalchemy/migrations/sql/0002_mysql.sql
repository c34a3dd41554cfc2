-- One procedure for each primitive that writes: one round trip, one transaction.
--
-- Each locks the row of the run first, so from there on a run has one writer, and the first result
-- wins. Parameters are p_, variables v_. What a procedure answers is its one row. Lists come as JSON
-- in which names and values are written as base64.

CREATE OR REPLACE PROCEDURE clutch_renew(
    p_id BIGINT, p_state VARCHAR(16), p_expires_at DOUBLE, p_now DOUBLE,
    p_ttl DOUBLE, p_result_ttl DOUBLE
)
SQL SECURITY INVOKER
BEGIN
    -- Renews the time that a run is kept. It is kept a little longer than asked for, so that most
    -- events need not write it.
    DECLARE v_ttl DOUBLE DEFAULT IF(p_state = 'RUNNING', p_ttl, p_result_ttl);
    IF p_expires_at < p_now + v_ttl THEN
        UPDATE clutch_run SET expires_at = p_now + v_ttl * 1.015625 WHERE id = p_id;
    END IF;
END
--;
CREATE OR REPLACE PROCEDURE clutch_create(
    p_prefix VARBINARY(400), p_run VARBINARY(800), p_name LONGTEXT CHARACTER SET utf8mb4,
    p_tags LONGTEXT CHARACTER SET utf8mb4, p_meta LONGBLOB, p_units BIGINT, p_jobs BIGINT,
    p_pages LONGTEXT CHARACTER SET utf8mb4, p_data LONGTEXT CHARACTER SET utf8mb4, p_open BOOLEAN,
    p_ttl DOUBLE, p_result_ttl DOUBLE
)
SQL SECURITY INVOKER
BEGIN
    -- Answers the id of the run, or NULL if there was one. With p_open the transaction stays open,
    -- for pages that do not fit into one message.
    DECLARE v_id BIGINT;
    DECLARE v_now DOUBLE;
    DECLARE v_exists BOOLEAN DEFAULT FALSE;
    DECLARE v_state VARCHAR(16) DEFAULT IF(p_units = 0, 'SUCCEEDED', 'RUNNING');
    DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; RESIGNAL; END;
    START TRANSACTION;
    DELETE FROM clutch_run
    WHERE prefix = p_prefix AND run = p_run AND expires_at <= UNIX_TIMESTAMP(SYSDATE(6));
    SET v_now = UNIX_TIMESTAMP(SYSDATE(6));
    BEGIN
        DECLARE EXIT HANDLER FOR 1062 SET v_exists = TRUE;
        INSERT INTO clutch_run (prefix, run, name, tags, meta, state, generation, jobs, remaining,
            created_at, updated_at, ended_at, expires_at)
        VALUES (p_prefix, p_run, p_name, p_tags, p_meta, v_state, 0, p_jobs, p_units,
            v_now, v_now, IF(p_units = 0, v_now, NULL),
            v_now + IF(p_units = 0, p_result_ttl, p_ttl));
    END;
    IF NOT v_exists THEN
        SET v_id = LAST_INSERT_ID();
        INSERT INTO clutch_page (run_id, name, value)
        SELECT v_id, FROM_BASE64(given.name), FROM_BASE64(given.value) FROM JSON_TABLE(
            p_pages, '$[*]' COLUMNS (name LONGTEXT PATH '$[0]', value LONGTEXT PATH '$[1]')) given;
        INSERT INTO clutch_data (run_id, name, value)
        SELECT v_id, FROM_BASE64(given.name), FROM_BASE64(given.value) FROM JSON_TABLE(
            p_data, '$[*]' COLUMNS (name LONGTEXT PATH '$[0]', value LONGTEXT PATH '$[1]')) given;
    END IF;
    IF v_id IS NULL OR NOT p_open THEN
        COMMIT;
    END IF;
    SELECT v_id;
END
--;
CREATE OR REPLACE PROCEDURE clutch_begin(
    p_prefix VARBINARY(400), p_run VARBINARY(800), p_address VARBINARY(700),
    p_slot VARBINARY(700), p_generation BIGINT, p_limit BIGINT, p_ttl DOUBLE, p_result_ttl DOUBLE
)
SQL SECURITY INVOKER
BEGIN
    -- Answers the verdict (1 run, 2 done, 3 drop, 4 give up) and what is held for the address.
    DECLARE v_id, v_generation, v_starts BIGINT;
    DECLARE v_state VARCHAR(16);
    DECLARE v_expires_at, v_now DOUBLE;
    DECLARE v_held LONGBLOB;
    DECLARE v_verdict INTEGER DEFAULT 1;
    DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; RESIGNAL; END;
    START TRANSACTION;
    SELECT id, state, generation, expires_at INTO v_id, v_state, v_generation, v_expires_at
    FROM clutch_run
    WHERE prefix = p_prefix AND run = p_run AND expires_at > UNIX_TIMESTAMP(SYSDATE(6))
    FOR UPDATE;
    IF v_id IS NULL OR v_state = 'CANCELLED' OR v_generation <> p_generation THEN
        SET v_verdict = 3;
    ELSEIF EXISTS (SELECT 1 FROM clutch_result WHERE run_id = v_id AND slot = p_slot) THEN
        SET v_verdict = 2;
    ELSE
        SET v_now = UNIX_TIMESTAMP(SYSDATE(6));
        CALL clutch_renew(v_id, v_state, v_expires_at, v_now, p_ttl, p_result_ttl);
        SELECT starts, held INTO v_starts, v_held
        FROM clutch_job WHERE run_id = v_id AND address = p_address;
        IF v_held IS NULL AND v_starts >= p_limit THEN
            SET v_verdict = 4;
        ELSEIF v_held IS NULL THEN
            INSERT INTO clutch_job (run_id, address, starts, started_at)
            VALUES (v_id, p_address, 1, v_now)
            ON DUPLICATE KEY UPDATE starts = starts + 1, started_at = v_now;
        END IF;
    END IF;
    COMMIT;
    SELECT v_verdict, v_held;
END
--;
CREATE OR REPLACE PROCEDURE clutch_settle(
    p_id BIGINT, p_kind VARBINARY(10), p_name VARBINARY(700), p_member VARBINARY(700),
    p_width BIGINT, p_failed BOOLEAN, p_who VARBINARY(700), OUT o_reports BOOLEAN,
    OUT o_closes BOOLEAN
)
SQL SECURITY INVOKER
BEGIN
    -- Counts a member, once. Gives whether p_who reports (it was the first when all had settled and
    -- one had failed), and whether p_who closes (it was the first when all had settled).
    DECLARE v_settled BIGINT DEFAULT 0;
    DECLARE v_failed BOOLEAN DEFAULT FALSE;
    DECLARE v_reporter, v_closer VARBINARY(700);
    SELECT settled, failed, reporter, closer INTO v_settled, v_failed, v_reporter, v_closer
    FROM clutch_tally WHERE run_id = p_id AND kind = p_kind AND name = p_name;
    IF NOT EXISTS (
        SELECT 1 FROM clutch_member
        WHERE run_id = p_id AND kind = p_kind AND name = p_name AND member = p_member
    ) THEN
        INSERT INTO clutch_member (run_id, kind, name, member)
        VALUES (p_id, p_kind, p_name, p_member);
        SET v_settled = v_settled + 1;
    END IF;
    SET v_failed = v_failed OR p_failed;
    IF v_settled >= p_width THEN
        SET v_closer = COALESCE(v_closer, p_who);
        SET v_reporter = COALESCE(v_reporter, IF(v_failed, p_who, NULL));
    END IF;
    INSERT INTO clutch_tally (run_id, kind, name, settled, failed, reporter, closer)
    VALUES (p_id, p_kind, p_name, v_settled, v_failed, v_reporter, v_closer)
    ON DUPLICATE KEY UPDATE
        settled = v_settled, failed = v_failed, reporter = v_reporter, closer = v_closer;
    SET o_reports = COALESCE(v_reporter = p_who, FALSE);
    SET o_closes = COALESCE(v_closer = p_who, FALSE);
END
--;
CREATE OR REPLACE PROCEDURE clutch_complete(
    p_prefix VARBINARY(400), p_run VARBINARY(800), p_address VARBINARY(700),
    p_slot VARBINARY(700), p_value LONGBLOB, p_generation BIGINT, p_token VARBINARY(255),
    p_job BOOLEAN, p_step VARBINARY(700), p_member VARBINARY(700), p_width BIGINT,
    p_barrier VARBINARY(700), p_slots BIGINT, p_changes LONGTEXT CHARACTER SET utf8mb4,
    p_info LONGBLOB, p_ttl DOUBLE, p_result_ttl DOUBLE
)
SQL SECURITY INVOKER
BEGIN
    DECLARE v_id, v_generation, v_failing, v_dead BIGINT;
    DECLARE v_remaining BIGINT DEFAULT -1;
    DECLARE v_state, v_before VARCHAR(16);
    DECLARE v_ender VARBINARY(255);
    DECLARE v_expires_at, v_now DOUBLE;
    DECLARE v_failed, v_final, v_finished BOOLEAN;
    DECLARE v_fresh, v_report, v_settled, v_joined, v_unused BOOLEAN DEFAULT FALSE;
    DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; RESIGNAL; END;
    START TRANSACTION;
    SELECT id, state, state, generation, remaining, failing, dead, ender, expires_at
    INTO v_id, v_state, v_before, v_generation, v_remaining, v_failing, v_dead, v_ender, v_expires_at
    FROM clutch_run
    WHERE prefix = p_prefix AND run = p_run AND expires_at > UNIX_TIMESTAMP(SYSDATE(6))
    FOR UPDATE;
    IF v_id IS NOT NULL THEN
        SET v_now = UNIX_TIMESTAMP(SYSDATE(6));
        SET v_fresh = NOT EXISTS (
            SELECT 1 FROM clutch_result WHERE run_id = v_id AND slot = p_slot);
        IF v_fresh THEN
            INSERT INTO clutch_result (run_id, slot, value) VALUES (v_id, p_slot, p_value);
            SET v_remaining = v_remaining - 1;
            SELECT attempt IS NOT NULL, final, finished INTO v_failed, v_final, v_finished
            FROM clutch_job WHERE run_id = v_id AND address = p_address;
            IF v_failed AND NOT v_finished THEN
                SET v_dead = v_dead - v_final;
                SET v_failing = v_failing - (NOT v_final);
                IF v_state = 'FAILED' AND v_dead = 0 THEN
                    SET v_state = 'RUNNING';
                END IF;
            END IF;
            INSERT INTO clutch_job (run_id, address, info) VALUES (v_id, p_address, p_info)
            ON DUPLICATE KEY UPDATE starts = 0, started_at = NULL, held = NULL, info = p_info,
                finished = attempt IS NOT NULL;
            IF p_changes <> '[]' THEN
                DELETE FROM clutch_data WHERE run_id = v_id AND name IN (
                    SELECT FROM_BASE64(given.name) FROM JSON_TABLE(
                        p_changes, '$[*]' COLUMNS (name LONGTEXT PATH '$[0]')) given);
                INSERT INTO clutch_data (run_id, name, value)
                SELECT v_id, FROM_BASE64(given.name), FROM_BASE64(given.value) FROM JSON_TABLE(
                    p_changes, '$[*]' COLUMNS (name LONGTEXT PATH '$[0]', value LONGTEXT PATH '$[1]')
                ) given WHERE given.value IS NOT NULL;
            END IF;
            IF v_remaining = 0 AND v_state = 'RUNNING' THEN
                SET v_state = 'SUCCEEDED';
                SET v_ender = p_token;
            END IF;
            UPDATE clutch_run SET
                ended_at = IF(v_state = v_before, ended_at, IF(v_state = 'RUNNING', NULL, v_now)),
                expires_at = IF(v_state = v_before, expires_at, v_now),
                state = v_state,
                remaining = v_remaining,
                done = done + p_job,
                failing = v_failing,
                dead = v_dead,
                updated_at = v_now,
                ender = v_ender
            WHERE id = v_id;
            IF v_state <> v_before THEN
                SET v_expires_at = v_now;
            END IF;
        END IF;
        IF v_generation = p_generation AND p_step IS NOT NULL THEN
            CALL clutch_settle(
                v_id, 'step', p_step, p_member, p_width, FALSE, p_token, v_report, v_settled);
        END IF;
        IF v_generation = p_generation AND p_barrier IS NOT NULL THEN
            CALL clutch_settle(
                v_id, 'barrier', p_barrier, p_slot, p_slots, FALSE, p_address, v_unused, v_joined);
        END IF;
        CALL clutch_renew(v_id, v_state, v_expires_at, v_now, p_ttl, p_result_ttl);
    END IF;
    COMMIT;
    SELECT v_remaining, v_fresh, COALESCE(v_state = 'SUCCEEDED' AND v_ender = p_token, FALSE),
        v_report, v_settled, v_joined;
END
--;
CREATE OR REPLACE PROCEDURE clutch_fail(
    p_prefix VARBINARY(400), p_run VARBINARY(800), p_address VARBINARY(700),
    p_slot VARBINARY(700), p_failure LONGBLOB, p_attempt BIGINT, p_final BOOLEAN,
    p_generation BIGINT, p_token VARBINARY(255), p_settles LONGTEXT CHARACTER SET utf8mb4,
    p_ttl DOUBLE, p_result_ttl DOUBLE
)
SQL SECURITY INVOKER
BEGIN
    -- The last two columns of the answer have a 0 or 1 for each step.
    DECLARE v_id, v_generation, v_attempt BIGINT;
    DECLARE v_state, v_before VARCHAR(16);
    DECLARE v_ender VARBINARY(255);
    DECLARE v_expires_at, v_now DOUBLE;
    DECLARE v_counted, v_final, v_finished, v_result, v_report, v_closes BOOLEAN DEFAULT FALSE;
    DECLARE v_recorded, v_died BOOLEAN DEFAULT FALSE;
    DECLARE v_reports, v_settled TEXT DEFAULT '';
    DECLARE v_index INTEGER DEFAULT 0;
    DECLARE v_path VARCHAR(40);
    DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; RESIGNAL; END;
    START TRANSACTION;
    SELECT id, state, state, generation, ender, expires_at
    INTO v_id, v_state, v_before, v_generation, v_ender, v_expires_at
    FROM clutch_run
    WHERE prefix = p_prefix AND run = p_run AND expires_at > UNIX_TIMESTAMP(SYSDATE(6))
    FOR UPDATE;
    IF v_id IS NOT NULL AND v_generation = p_generation THEN
        SET v_now = UNIX_TIMESTAMP(SYSDATE(6));
        SELECT attempt, final, finished, attempt IS NOT NULL AND NOT finished
        INTO v_attempt, v_final, v_finished, v_counted
        FROM clutch_job WHERE run_id = v_id AND address = p_address;
        SET v_recorded = v_attempt IS NULL OR v_attempt < p_attempt
            OR (v_attempt = p_attempt AND v_final < p_final);
        IF v_recorded THEN
            SET v_result = EXISTS (
                SELECT 1 FROM clutch_result WHERE run_id = v_id AND slot = p_slot);
            SET v_finished = v_finished OR v_result;
            INSERT INTO clutch_job (run_id, address, attempt, final, failure, finished)
            VALUES (v_id, p_address, p_attempt, p_final, p_failure, v_finished)
            ON DUPLICATE KEY UPDATE attempt = p_attempt, final = p_final, failure = p_failure,
                finished = v_finished, starts = 0, started_at = NULL;
            IF p_final AND NOT v_result AND v_state = 'RUNNING' THEN
                SET v_state = 'FAILED';
                SET v_ender = p_token;
                SET v_expires_at = v_now;
            END IF;
            UPDATE clutch_run SET
                state = v_state,
                failing = failing - (v_counted AND NOT v_final) + (NOT v_finished AND NOT p_final),
                dead = dead - (v_counted AND v_final) + (NOT v_finished AND p_final),
                updated_at = v_now,
                ended_at = IF(v_state = v_before, ended_at, v_now),
                ender = v_ender,
                expires_at = IF(v_state = v_before, expires_at, v_now)
            WHERE id = v_id;
        END IF;
        SET v_died = COALESCE(v_state = 'FAILED' AND v_ender = p_token, FALSE);
        WHILE v_index < JSON_LENGTH(p_settles) DO
            SET v_path = CONCAT('$[', v_index, ']');
            CALL clutch_settle(
                v_id,
                'step',
                FROM_BASE64(JSON_VALUE(p_settles, CONCAT(v_path, '[0]'))),
                FROM_BASE64(JSON_VALUE(p_settles, CONCAT(v_path, '[1]'))),
                JSON_VALUE(p_settles, CONCAT(v_path, '[2]')),
                JSON_VALUE(p_settles, CONCAT(v_path, '[3]')),
                p_token,
                v_report,
                v_closes
            );
            SET v_reports = CONCAT(v_reports, v_report);
            SET v_settled = CONCAT(v_settled, v_closes);
            SET v_index = v_index + 1;
        END WHILE;
        CALL clutch_renew(v_id, v_state, v_expires_at, v_now, p_ttl, p_result_ttl);
    END IF;
    COMMIT;
    SELECT v_recorded, v_died, v_reports, v_settled;
END
--;
CREATE OR REPLACE PROCEDURE clutch_hold(
    p_prefix VARBINARY(400), p_run VARBINARY(800), p_address VARBINARY(700), p_held LONGBLOB,
    p_ttl DOUBLE, p_result_ttl DOUBLE
)
SQL SECURITY INVOKER
BEGIN
    DECLARE v_id BIGINT;
    DECLARE v_state VARCHAR(16);
    DECLARE v_expires_at DOUBLE;
    DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; RESIGNAL; END;
    START TRANSACTION;
    SELECT id, state, expires_at INTO v_id, v_state, v_expires_at FROM clutch_run
    WHERE prefix = p_prefix AND run = p_run AND expires_at > UNIX_TIMESTAMP(SYSDATE(6))
    FOR UPDATE;
    IF v_id IS NOT NULL THEN
        INSERT INTO clutch_job (run_id, address, held) VALUES (v_id, p_address, p_held)
        ON DUPLICATE KEY UPDATE held = p_held, starts = 0, started_at = NULL;
        CALL clutch_renew(
            v_id, v_state, v_expires_at, UNIX_TIMESTAMP(SYSDATE(6)), p_ttl, p_result_ttl);
    END IF;
    COMMIT;
    SELECT v_id IS NOT NULL;
END
--;
CREATE OR REPLACE PROCEDURE clutch_take(
    p_prefix VARBINARY(400), p_run VARBINARY(800), p_name VARBINARY(700), p_lane VARBINARY(700),
    p_after BIGINT, p_generation BIGINT, p_ttl DOUBLE, p_result_ttl DOUBLE
)
SQL SECURITY INVOKER
BEGIN
    DECLARE v_id, v_generation, v_previous, v_number BIGINT;
    DECLARE v_state VARCHAR(16);
    DECLARE v_expires_at DOUBLE;
    DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; RESIGNAL; END;
    START TRANSACTION;
    SELECT id, state, generation, expires_at INTO v_id, v_state, v_generation, v_expires_at
    FROM clutch_run
    WHERE prefix = p_prefix AND run = p_run AND expires_at > UNIX_TIMESTAMP(SYSDATE(6))
    FOR UPDATE;
    IF v_id IS NULL OR v_state = 'CANCELLED' OR v_generation <> p_generation THEN
        SET v_number = -1;
    ELSE
        CALL clutch_renew(
            v_id, v_state, v_expires_at, UNIX_TIMESTAMP(SYSDATE(6)), p_ttl, p_result_ttl);
        SELECT previous, number INTO v_previous, v_number FROM clutch_lane
        WHERE run_id = v_id AND name = p_name AND lane = p_lane;
        IF p_after <> COALESCE(v_number, -1) THEN
            SET v_number = IF(p_after = v_previous, v_number, -1);
        ELSE
            -- Numbers rise, so the last one taken is the last of some lane.
            SELECT COALESCE(MAX(number) + 1, 0) INTO v_number
            FROM clutch_lane WHERE run_id = v_id AND name = p_name;
            INSERT INTO clutch_lane (run_id, name, lane, previous, number)
            VALUES (v_id, p_name, p_lane, p_after, v_number)
            ON DUPLICATE KEY UPDATE previous = p_after, number = v_number;
        END IF;
    END IF;
    COMMIT;
    SELECT v_number;
END
--;
CREATE OR REPLACE PROCEDURE clutch_transition(
    p_prefix VARBINARY(400), p_run VARBINARY(800), p_sources VARCHAR(200),
    p_target VARCHAR(16), p_generation BIGINT, p_ttl DOUBLE, p_result_ttl DOUBLE
)
SQL SECURITY INVOKER
BEGIN
    DECLARE v_id, v_generation, v_remaining BIGINT;
    DECLARE v_state VARCHAR(16);
    DECLARE v_now DOUBLE;
    DECLARE v_moved BOOLEAN DEFAULT FALSE;
    DECLARE EXIT HANDLER FOR SQLEXCEPTION BEGIN ROLLBACK; RESIGNAL; END;
    START TRANSACTION;
    SELECT id, state, generation, remaining INTO v_id, v_state, v_generation, v_remaining
    FROM clutch_run
    WHERE prefix = p_prefix AND run = p_run AND expires_at > UNIX_TIMESTAMP(SYSDATE(6))
    FOR UPDATE;
    IF v_id IS NOT NULL AND v_generation = p_generation AND FIND_IN_SET(v_state, p_sources) THEN
        SET v_moved = TRUE;
        SET v_now = UNIX_TIMESTAMP(SYSDATE(6));
        SET v_state = p_target;
        IF p_target = 'RUNNING' THEN
            SET v_generation = v_generation + 1;
            UPDATE clutch_job SET starts = 0, started_at = NULL, attempt = NULL, final = FALSE,
                failure = NULL, finished = FALSE WHERE run_id = v_id;
            DELETE FROM clutch_member WHERE run_id = v_id;
            DELETE FROM clutch_tally WHERE run_id = v_id;
            DELETE FROM clutch_lane WHERE run_id = v_id;
            IF v_remaining = 0 THEN
                SET v_state = 'SUCCEEDED';
            END IF;
        END IF;
        UPDATE clutch_run SET
            state = v_state,
            generation = v_generation,
            failing = IF(p_target = 'RUNNING', 0, failing),
            dead = IF(p_target = 'RUNNING', 0, dead),
            updated_at = v_now,
            ended_at = IF(v_state = 'RUNNING', NULL, v_now),
            ender = NULL,
            expires_at = v_now + IF(v_state = 'RUNNING', p_ttl, p_result_ttl)
        WHERE id = v_id;
    END IF;
    COMMIT;
    SELECT v_moved;
END
