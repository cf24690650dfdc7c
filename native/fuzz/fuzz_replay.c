/* Replay of a segment whose bytes are hostile, as after a crash, or worse:
 *
 * - it ends with 0, or -EPROTO at a record of a later version, within the segment, having counted
 *   every record it took; a second replay, and one that stops at any lsn, agree with it;
 * - the hot map it fills reads as the bytes that the records hold, in their order, and nothing of
 *   what follows the end of the log;
 * - bd_replay_proves answers yes or no from any position;
 * - a scan ends at the same record, unless one of them does not know what a record refers to;
 * - after it the log goes on: what is appended then is found by the next replay, all before it too.
 *
 * Input: a switch (1: reseal), a length (1), then the segment from the end of its header on; the
 * rest is zeros. To reseal makes numbers, chain and checksums of each record right that is found by
 * walking, so that mutations get behind them; flags of a record say what is left as it is. */
#include <errno.h>

#include "bytes.h"
#include "crc32c.h"
#include "fuzz.h"
#include "rig.h"
#include "scan.h"

enum {
    SEGMENT = 64 << 10,
    VOLUME = 1 << 24,
    MODELLED = 32 << 10, /* bytes of the volume that are compared */
    KEEP_ORDER = 0x8000, /* flags of a record: leave lsn and chain alone */
    KEEP_PAYLOAD = 0x4000,
    RESEAL = 1,
};

enum what { NOTHING, DATA, ZEROS, REFERRED };

static uint8_t model[MODELLED];
static uint8_t model_kind[MODELLED];
static uint8_t got[MODELLED];

static void reseal(uint8_t *segment)
{
    uint64_t at = BD_SEGMENT_HEADER;
    uint64_t lsn = 1;
    uint32_t chain = 0;
    while (at + BD_RECORD_HEADER <= SEGMENT) {
        uint8_t *bytes = segment + at;
        if (memcmp(bytes, "bdJR", 4) != 0) {
            uint64_t next = (at + BD_SECTOR - 1) & ~(uint64_t)(BD_SECTOR - 1);
            if (next == at)
                break;
            at = next;
            continue;
        }
        uint16_t flags = bd_get16(bytes + 6);
        if (!(flags & KEEP_ORDER)) {
            bd_put64(bytes + 16, lsn);
            bd_put32(bytes + 56, chain);
        }
        struct bd_record record = {.op = bytes[5], .length = bd_get64(bytes + 40)};
        uint64_t payload = bd_record_payload(&record);
        if (payload > SEGMENT - at - BD_RECORD_HEADER)
            payload = 0;
        if (payload > 0 && !(flags & KEEP_PAYLOAD))
            bd_put32(bytes + 52, bd_crc32c(0, bytes + BD_RECORD_HEADER, (size_t)payload));
        chain = bd_crc32c(0, bytes, 60);
        bd_put32(bytes + 60, chain);
        lsn++;
        at += (BD_RECORD_HEADER + payload + BD_RECORD_ALIGN - 1) & ~(uint64_t)(BD_RECORD_ALIGN - 1);
    }
}

/* A fresh journal and volume over the same file. */
static void reopen(struct rig *rig)
{
    bd_volume_free(rig->volume);
    bd_journal_free(rig->journal);
    rig->journal = bd_journal_new((const uint8_t *)"0123456789abcdef", SEGMENT, 1);
    CHECK(rig->journal != NULL);
    rig->volume = bd_volume_new(rig->journal, rig->table, 1, 1, RIG_CHUNK, VOLUME, 0, 0);
    CHECK(rig->volume != NULL);
    CHECK_EQ(bd_journal_adopt(rig->journal, 0, memory_file_open(&rig->files[0]), 1), 0);
}

static int replay(struct rig *rig, struct bd_replay *replay, uint64_t end_lsn)
{
    static struct bd_volume *volumes[2];
    reopen(rig);
    volumes[1] = rig->volume;
    *replay = (struct bd_replay){.journal = rig->journal,
                                 .volumes = volumes,
                                 .volume_count = 2,
                                 .next_lsn = 1,
                                 .position = BD_SEGMENT_HEADER,
                                 .end_lsn = end_lsn,
                                 .want_points = true};
    int result = bd_replay_segment(replay, 0);
    free(replay->points);
    free(replay->heads);
    return result;
}

static void note(const struct bd_record *record, enum what kind, const uint8_t *payload)
{
    for (uint64_t i = 0; i < record->length && record->offset + i < MODELLED; i++) {
        model_kind[record->offset + i] = (uint8_t)kind;
        model[record->offset + i] = kind == DATA ? payload[i] : 0;
    }
}

/* What the records up to `end` say, taken from the segment by a loop that only walks. */
static void make_model(const uint8_t *segment, uint64_t records)
{
    uint64_t at = BD_SEGMENT_HEADER;
    uint64_t seq = 0;
    uint64_t lsn = 1;
    memset(model, 0, sizeof model);
    memset(model_kind, NOTHING, sizeof model_kind);
    while (records-- > 0) {
        struct bd_record record;
        if (bd_record_decode(segment + at, &record) != 0 || record.lsn != lsn) {
            at = (at + BD_SECTOR - 1) & ~(uint64_t)(BD_SECTOR - 1);
            CHECK_EQ(bd_record_decode(segment + at, &record), 0);
        }
        CHECK_EQ(record.lsn, lsn++);
        if (bd_record_has_range(record.op) && record.volume == 1 && record.seq > seq &&
            record.volume_epoch >= 1) {
            seq = record.seq;
            note(&record,
                 record.op == BD_RECORD_WRITE   ? DATA
                 : record.op == BD_RECORD_REFER ? REFERRED
                                                : ZEROS,
                 segment + at + BD_RECORD_HEADER);
        }
        at += bd_record_footprint(&record);
    }
}

static void check_contents(struct rig *rig)
{
    uint64_t next = 0;
    struct bd_map_cursor at = {0, 0};
    const struct bd_extent *extent;
    for (; (extent = bd_map_get(rig->volume->active, at)) != NULL;
         at = bd_map_next(rig->volume->active, at)) {
        if (extent->start >= MODELLED)
            break;
        uint64_t end = extent->start + extent->length;
        if (end > MODELLED)
            end = MODELLED;
        for (; next < extent->start; next++)
            CHECK_EQ(model_kind[next], NOTHING);
        const uint8_t kinds[] = {DATA, ZEROS, REFERRED};
        for (; next < end; next++)
            CHECK_EQ(model_kind[next], kinds[bd_place_kind(extent->place)]);
        if (bd_place_kind(extent->place) == BD_PLACE_REFER)
            continue;
        struct bd_read_fault fault;
        uint64_t length = end - extent->start;
        CHECK_EQ(bd_volume_read(rig->volume, extent->start, length, got, false, &fault), 0);
        CHECK(memcmp(got, model + extent->start, length) == 0);
    }
    for (; next < MODELLED; next++)
        CHECK_EQ(model_kind[next], NOTHING);
}

static void check_scan(struct rig *rig, const struct bd_replay *found, int result)
{
    struct bd_file file = memory_file_open(&rig->files[0]);
    struct bd_scan scan = {
        .reader = {
            .file = &file, .segment_bytes = SEGMENT, .next_lsn = 1, .position = BD_SEGMENT_HEADER}};
    CHECK_EQ(bd_log_open(&scan.reader), 0);
    int scanned = bd_scan_segment(&scan);
    CHECK(scanned == 0 || scanned == -EPROTO);
    if (scanned == 0 && result == 0)
        CHECK(scan.reader.position == found->position && scan.reader.chain == found->chain &&
              scan.reader.next_lsn == found->next_lsn);
    CHECK(scan.run_count <= scan.reader.next_lsn - 1);
    for (size_t i = 0; i < scan.run_count; i++)
        CHECK(scan.runs[i].last - scan.runs[i].first < scan.reader.next_lsn);
    bd_scan_close(&scan);
}

/* After the replay: one more write, which the next replay finds behind all the others. */
static void check_goes_on(struct rig *rig, const struct bd_replay *found)
{
    const uint64_t room = 2 * BD_SECTOR + 2 * BD_RECORD_HEADER;
    const uint64_t most = UINT64_MAX / 2; /* numbers that a log does not reach in its life */
    if (found->position + room > SEGMENT || rig->volume->seq > most || found->next_lsn > most ||
        found->node_epoch == UINT32_MAX)
        return;
    rig->journal->node_epoch = found->node_epoch + 1;
    rig->volume->epoch = 1;
    CHECK_EQ(bd_journal_resume(rig->journal, 0, found->position, found->next_lsn, found->chain), 0);
    rig_write(rig, 0, BD_SECTOR, 0x5a);
    uint64_t seq = rig->volume->seq;
    uint64_t lsn = rig->journal->next_lsn;
    struct bd_replay again;
    CHECK_EQ(replay(rig, &again, 0), 0);
    CHECK_EQ(again.next_lsn, lsn);
    CHECK(again.records > found->records);
    CHECK_EQ(rig->volume->seq, seq);
    rig_expect(rig, 0, BD_SECTOR, 0x5a);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct input input = {data, size};
    uint64_t switches = take(&input, 1);
    uint64_t probe = take(&input, 1);
    size_t length;
    const uint8_t *bytes = take_bytes(&input, SEGMENT - BD_SEGMENT_HEADER, &length);
    struct rig rig;
    rig_init(&rig, SEGMENT, 0, VOLUME);
    if (length > 0)
        memcpy(rig.files[0].bytes + BD_SEGMENT_HEADER, bytes, length);
    if (switches & RESEAL)
        reseal(rig.files[0].bytes);

    struct bd_replay first;
    struct bd_replay second;
    int result = replay(&rig, &first, 0);
    CHECK(result == 0 || result == -EPROTO);
    CHECK(first.position >= BD_SEGMENT_HEADER && first.position <= SEGMENT);
    CHECK_EQ(first.records, first.next_lsn - 1);
    CHECK(first.skipped <= first.records);
    make_model(rig.files[0].bytes, first.records);
    check_contents(&rig);
    check_scan(&rig, &first, result);
    uint64_t proof = BD_SEGMENT_HEADER + probe * 256;
    int proved = bd_replay_proves(rig.journal, 0, proof, first.next_lsn);
    CHECK(proved == 0 || proved == 1);

    uint64_t end_lsn = first.records ? 1 + probe % first.records : 0;
    int ended = replay(&rig, &second, end_lsn);
    /* Whether a record that this volume cannot take lies behind the end may be known or not. */
    CHECK(ended == 0 || (ended == result && first.records == end_lsn));
    if (end_lsn > 0) {
        CHECK_EQ(second.records, end_lsn);
        make_model(rig.files[0].bytes, end_lsn);
        check_contents(&rig);
    }
    CHECK_EQ(replay(&rig, &second, 0), result);
    CHECK(second.position == first.position && second.chain == first.chain &&
          second.records == first.records && second.skipped == first.skipped);
    if (result == 0)
        check_goes_on(&rig, &second);
    rig_destroy(&rig);
    return 0;
}
