-- A record of version 1 with one run. Made by this release; never changed, so that later ones still open it.
CREATE TABLE runs (
    number INTEGER PRIMARY KEY,       -- order of arrival in this file
    id TEXT NOT NULL UNIQUE,          -- short, stable name
    started TEXT NOT NULL,            -- UTC, ISO 8601
    reason TEXT,                      -- why it ended; NULL while running and after a kill
    seconds REAL,                     -- from the first step to the end
    drafted INTEGER,                  -- tokens drafted ahead of their thoughts
    accepted INTEGER,                 -- how many of them became the emitted token
    model TEXT NOT NULL,              -- name or folder
    revision TEXT,                    -- commit of the model on its hub
    base TEXT NOT NULL,               -- the base model's name
    base_revision TEXT,               -- its commit
    base_hash TEXT NOT NULL,          -- fingerprint of its weights
    head_hash TEXT NOT NULL,          -- of markers and mixing head
    adapter TEXT NOT NULL,            -- name of the active adapter, '' without one
    adapter_hash TEXT NOT NULL,       -- of its weights
    untrained INTEGER NOT NULL,       -- 1 where thoughts could not change the answer
    dtype TEXT NOT NULL,              -- precision
    device TEXT NOT NULL,             -- cpu, cuda:0, ...
    version TEXT NOT NULL,            -- of quietstar
    versions TEXT NOT NULL,           -- JSON object: library -> version
    seed INTEGER,                     -- from the settings, as the six columns that follow
    trigger TEXT,                     -- when it thought
    control TEXT,                     -- what stood in the thoughts' place
    thought_length INTEGER,           -- tokens of a thought
    samples INTEGER,                  -- thoughts at a position
    temperature REAL,                 -- of the answer
    mixing_weight REAL,               -- fixed w, NULL for the head's own
    settings TEXT NOT NULL,           -- JSON object: all settings
    phase TEXT NOT NULL,              -- answer, or reason
    chat INTEGER NOT NULL,            -- 1 where the prompt went through a chat template
    continues TEXT REFERENCES runs(id) ON DELETE SET NULL,  -- the run whose text this one goes on from
    batch TEXT,                       -- id of the first run of the batch, NULL for one alone
    sequence INTEGER NOT NULL,        -- place in the batch
    batch_size INTEGER NOT NULL,      -- runs in the batch
    schema INTEGER NOT NULL,          -- version of the event frames
    tokens INTEGER NOT NULL DEFAULT 0,    -- how many it emitted
    thoughts INTEGER NOT NULL DEFAULT 0,  -- positions where it thought
    flips INTEGER NOT NULL DEFAULT 0,     -- thoughts that changed the likeliest token
    note TEXT NOT NULL DEFAULT '',    -- yours
    asked TEXT NOT NULL,              -- what was asked, without template; '' where ids were given
    prompt TEXT NOT NULL,             -- what the model read
    text TEXT NOT NULL DEFAULT '',    -- what it said
    prompt_ids TEXT NOT NULL          -- JSON list of token ids
);
CREATE INDEX runs_started ON runs(started, number);
CREATE INDEX runs_batch ON runs(batch);
CREATE INDEX runs_continues ON runs(continues);
CREATE INDEX runs_unfinished ON runs(number) WHERE reason IS NULL;

CREATE TABLE tags (
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,  -- id of the run
    tag TEXT NOT NULL,                -- yours
    PRIMARY KEY (run, tag)
) WITHOUT ROWID;
CREATE INDEX tags_tag ON tags(tag, run);

CREATE TABLE tokens (
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,  -- id of the run
    position INTEGER NOT NULL,        -- counted from the prompt's first token
    token INTEGER NOT NULL,           -- token id
    text TEXT NOT NULL,               -- what it completes, '' inside a character
    logprob REAL,                     -- nats, under the mixed prediction
    thought INTEGER NOT NULL,         -- 1 where a thought came before it
    PRIMARY KEY (run, position)
) WITHOUT ROWID;

CREATE TABLE thoughts (
    number INTEGER PRIMARY KEY,       -- order of arrival in this file
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,  -- id of the run
    position INTEGER NOT NULL,        -- index of the last visible token; the thought helps to predict the next
    context TEXT NOT NULL,            -- the end of the text before it
    text TEXT NOT NULL,               -- the first sample's text
    trigger TEXT NOT NULL,            -- the rules that asked for it
    control TEXT NOT NULL,            -- what stood in its place, 'own' for nothing
    weight REAL,                      -- mixing weight w, mean over samples
    kl REAL,                          -- KL(mixed || base), nats
    entropy REAL,                     -- of the base prediction, nats
    flipped INTEGER NOT NULL,         -- 1 where it changed the likeliest token
    base_token TEXT,                  -- likeliest next token without the thought
    mixed_token TEXT,                 -- with it
    only_token TEXT,                  -- from it alone
    base_top TEXT NOT NULL,           -- JSON list of [token id, text, probability], likeliest first
    mixed_top TEXT NOT NULL,          -- the same with the thought
    only_top TEXT NOT NULL,           -- the same from the thought alone
    UNIQUE (run, position)
);
CREATE INDEX thoughts_kl ON thoughts(kl);
CREATE INDEX thoughts_weight ON thoughts(weight);
CREATE INDEX thoughts_entropy ON thoughts(entropy);

CREATE TABLE samples (
    number INTEGER PRIMARY KEY,       -- order of arrival in this file
    run TEXT NOT NULL,                -- id of the run
    position INTEGER NOT NULL,        -- the thought's
    sample INTEGER NOT NULL,          -- 0, 1, ...
    text TEXT NOT NULL,               -- the whole thought
    weight REAL,                      -- its own w
    tokens TEXT NOT NULL,             -- JSON list of token ids
    pieces TEXT NOT NULL,             -- JSON list of the tokens' texts
    logprobs TEXT NOT NULL,           -- JSON list, nats each token had when thought
    UNIQUE (run, position, sample),
    FOREIGN KEY (run, position) REFERENCES thoughts(run, position) ON DELETE CASCADE
);

CREATE TABLE interventions (
    number INTEGER PRIMARY KEY,       -- order of arrival in this file
    run TEXT NOT NULL REFERENCES runs(id) ON DELETE CASCADE,  -- id of the run
    position INTEGER NOT NULL,        -- where the thought was changed
    made TEXT NOT NULL,               -- UTC, ISO 8601
    kind TEXT NOT NULL,               -- edited, resampled, or the name of a control
    text TEXT NOT NULL,               -- the thought that was put there
    tokens TEXT NOT NULL,             -- JSON list of its token ids
    pieces TEXT NOT NULL,             -- JSON list of the tokens' texts
    logprobs TEXT NOT NULL,           -- JSON list, nats
    weight REAL,                      -- mixing weight w
    kl REAL,                          -- KL(mixed || base), nats
    flipped INTEGER NOT NULL,         -- 1 where the likeliest token differs from the base's
    base_top TEXT NOT NULL,           -- likeliest next tokens without it, JSON as in thoughts
    mixed_top TEXT NOT NULL,          -- with it
    only_top TEXT NOT NULL,           -- from it alone
    continuation TEXT,                -- the text that followed, NULL where none was asked for
    settings TEXT NOT NULL            -- JSON object: how it was made
);
CREATE INDEX interventions_run ON interventions(run, position);

CREATE VIRTUAL TABLE runs_search USING fts5(prompt, text, content="runs", content_rowid="number");
CREATE VIRTUAL TABLE samples_search USING fts5(text, content="samples", content_rowid="number");

CREATE TRIGGER runs_added AFTER INSERT ON runs BEGIN
    INSERT INTO runs_search(rowid, prompt, text) VALUES (new.number, new.prompt, new.text);
END;
CREATE TRIGGER runs_removed AFTER DELETE ON runs BEGIN
    INSERT INTO runs_search(runs_search, rowid, prompt, text) VALUES ('delete', old.number, old.prompt, old.text);
END;
CREATE TRIGGER runs_changed AFTER UPDATE OF prompt, text ON runs BEGIN
    INSERT INTO runs_search(runs_search, rowid, prompt, text) VALUES ('delete', old.number, old.prompt, old.text);
    INSERT INTO runs_search(rowid, prompt, text) VALUES (new.number, new.prompt, new.text);
END;
CREATE TRIGGER samples_added AFTER INSERT ON samples BEGIN
    INSERT INTO samples_search(rowid, text) VALUES (new.number, new.text);
END;
CREATE TRIGGER samples_removed AFTER DELETE ON samples BEGIN
    INSERT INTO samples_search(samples_search, rowid, text) VALUES ('delete', old.number, old.text);
END;

CREATE VIEW thought_list AS
SELECT t.run, r.started, r.model, r.base, r.asked, t.position, t.context, t.text AS thought,
       t.trigger, t.control, t.weight, t.kl, t.entropy, t.flipped, t.base_token, t.mixed_token, t.only_token
FROM thoughts t JOIN runs r ON r.id = t.run;
PRAGMA application_id = 1364415570;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
INSERT INTO "runs" VALUES(1,'vers1000','2026-11-24T12:00:00.000000Z','stop',0.5,0,0,'m',NULL,'b',NULL,'ab','cd','','',0,'float32','cpu','0.1.0','{"torch":"2"}',3,'always','own',2,1,NULL,NULL,'{"seed":3,"trigger":"always","control":"own","samples":1,"thought_length":2,"stop":[]}','answer',0,NULL,NULL,0,1,2,3,3,1,'of version 1','Why?','Why?',' So it is','[1,2]');
INSERT INTO "interventions" VALUES(1,'vers1000',2,'2026-11-24T12:00:01.000000Z','edited','no sky','[1,2]','["no"," sky"]','[-1.0,"-inf"]',0.4,0.7,1,'[[5," base",0.5]]','[[5," base",0.5]]','[[5," base",0.5]]',' so it goes','{"seed":4}');
INSERT INTO "samples" VALUES(1,'vers1000',1,0,'think0 deep',0.3,'[7,8]','["t","hink0 deep"]','[-0.5,-1.25]');
INSERT INTO "samples" VALUES(2,'vers1000',2,0,'think1 deep',0.3,'[7,8]','["t","hink1 deep"]','[-0.5,-1.25]');
INSERT INTO "samples" VALUES(3,'vers1000',3,0,'think2 deep',0.3,'[7,8]','["t","hink2 deep"]','[-0.5,-1.25]');
INSERT INTO "tags" VALUES('vers1000','kept');
INSERT INTO "thoughts" VALUES(1,'vers1000',1,'Why?','think0 deep','always','own',0.3,0.1,1.5,0,' base',' base',' only','[[5," base",0.5],[6," other",0.25]]','[[5," base",0.5],[6," other",0.25]]','[[9," only",0.125]]');
INSERT INTO "thoughts" VALUES(2,'vers1000',2,'Why? So','think1 deep','always','own',0.3,0.2,1.5,1,' base',' other',' only','[[5," base",0.5],[6," other",0.25]]','[[6," other",0.25],[5," base",0.5]]','[[9," only",0.125]]');
INSERT INTO "thoughts" VALUES(3,'vers1000',3,'Why? So it','think2 deep','always','own',0.3,3.00000000000000044408e-01,1.5,0,' base',' base',' only','[[5," base",0.5],[6," other",0.25]]','[[5," base",0.5],[6," other",0.25]]','[[9," only",0.125]]');
INSERT INTO "tokens" VALUES('vers1000',2,11,' So',-0.75,1);
INSERT INTO "tokens" VALUES('vers1000',3,11,' it',-0.75,1);
INSERT INTO "tokens" VALUES('vers1000',4,11,' is',-0.75,1);
