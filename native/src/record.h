/* Journal records and segment headers: bytes <-> structs. The tables are in docs/disk-format.md.
 * Pure: no I/O. Bytes from a disk are hostile until bd_record_decode said yes. */
#ifndef BLOCKD_RECORD_H
#define BLOCKD_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum {
    BD_RECORD_HEADER = 64,
    BD_RECORD_ALIGN = 64,            /* records start at multiples of it */
    BD_RECORD_MAX_PAYLOAD = 1 << 20, /* longer writes become several records */
    BD_SEGMENT_HEADER = 4096,        /* reserved at the head of a segment; records follow */
    BD_SEGMENT_HEADER_USED = 128,
    BD_FORMAT_VERSION = 1,
    BD_REFER_PAYLOAD = 48,
    BD_REFER_VERSION = 1,
    BD_REFER_MAX_HEIGHT = 8, /* of a tree: 256^8 chunks */
    BD_NOTE_HEADER = 24,
    BD_NOTE_MAX_PAYLOAD = 4096,
    BD_NOTE_VERSION = 1,
    BD_NOTE_RESTORE = 6, /* the kind that native code knows: see struct bd_note */
};

#define BD_MAX_VOLUME_BYTES (UINT64_C(1) << 62)

/* No log gets there: a segment that says it has is forged, and none is begun after it. */
#define BD_LAST_SEQUENCE (UINT64_C(1) << 63)

enum bd_record_op {
    BD_RECORD_WRITE = 1, /* payload: the bytes */
    BD_RECORD_UNMAP = 2, /* range reads as zeros; no payload */
    BD_RECORD_ZERO = 3,  /* the same, asked for as WRITE_ZEROES */
    BD_RECORD_MARK = 4,  /* offset: wall clock in ns; seq: highest lsn known to be durable; in the
                            bytes of length, volume and payload_crc: the store's uuid */
    BD_RECORD_HEAD = 5,  /* payload: a volume's new head (commit id and description) */
    BD_RECORD_POINT = 6, /* payload: volumes, where they are, and the name that this gets */
    BD_RECORD_REFER = 7, /* range reads as a range of a tree of chunks; payload: which */
    BD_RECORD_NOTE = 8,  /* what became of the volume as a whole; payload: what, and its sizes */
};

struct bd_record {
    uint8_t op;
    uint16_t flags;
    uint32_t node_epoch;   /* raised at each start of the daemon */
    uint32_t volume_epoch; /* raised at each change of the volume's writer */
    uint32_t volume;       /* number of the volume in this directory; 0 for none */
    uint64_t lsn;          /* position in the order of all records of this journal */
    uint64_t seq;          /* position in the order of the volume's records */
    uint64_t offset;
    uint64_t length; /* bytes affected; for WRITE, HEAD, POINT, NOTE also the payload's size */
    uint32_t payload_crc;
    uint32_t chain; /* header_crc of the record before: ties the order */
    uint32_t header_crc;
};

/* What a REFER record lets its range read as. */
struct bd_refer {
    uint8_t root[32];
    uint8_t height;
    uint64_t source; /* offset of the range in the tree */
    uint64_t start;  /* of the record: offset of the range in the volume */
    uint64_t seq;    /* of the record: names it within the volume */
};

/* The head of a NOTE's payload; what follows it is for others (volume/notes.py). A volume whose
 * size changes reads as zeros between the two from there on. But from a RESTORE on it reads as an
 * earlier version, of that size: nothing that is hot before it counts any more. */
struct bd_note {
    uint8_t kind;
    uint64_t size_before;
    uint64_t size;
};

struct bd_segment_header {
    uint8_t store_uuid[16];
    uint32_t slot;
    uint32_t node_epoch;
    uint64_t sequence; /* order of segments; raised each time one is begun */
    uint64_t first_lsn;
    uint64_t synced_lsn; /* known to be durable when the segment was begun */
    uint32_t chain;      /* header_crc of the last record of the segment before */
    uint64_t segment_bytes;
};

/* Encode into 64 bytes; sets record->header_crc. */
void bd_record_encode(struct bd_record *record, uint8_t *out);

/* 0; -EBADMSG when magic or checksum are wrong; -EPROTO, with *record filled in, for a version, op
 * or size this code does not know although the checksum is right. */
int bd_record_decode(const uint8_t *bytes, struct bd_record *record);

/* Bytes that the record takes in the segment, header and alignment included. */
uint64_t bd_record_footprint(const struct bd_record *record);

/* Bytes of payload. */
uint64_t bd_record_payload(const struct bd_record *record);

bool bd_record_has_payload(uint8_t op);

/* Whether it changes a range of a volume. */
bool bd_record_has_range(uint8_t op);

/* Whether it is one of those that the seqs of its volume count. */
bool bd_record_has_seq(uint8_t op);

/* The payload of a REFER; `start` and `seq` are not in it, and left alone. -EPROTO for what this
 * code does not know. */
void bd_refer_encode(const struct bd_refer *refer, uint8_t out[BD_REFER_PAYLOAD]);
int bd_refer_decode(const uint8_t *payload, struct bd_refer *refer);

/* The same of a NOTE, of whose payload there are `length` bytes. */
int bd_note_decode(const uint8_t *payload, uint64_t length, struct bd_note *note);

/* A MARK is of one store: what looks like one in a payload (a guest may keep another journal on its
 * volume, or mean harm) says nothing. */
void bd_record_sign(struct bd_record *mark, const uint8_t store_uuid[16]);
bool bd_record_is_signed(const struct bd_record *mark, const uint8_t store_uuid[16]);

void bd_segment_header_encode(const struct bd_segment_header *header, uint8_t *out);
int bd_segment_header_decode(const uint8_t *bytes, struct bd_segment_header *header);

#endif
