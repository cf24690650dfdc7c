/* The parts of iSCSI's and SCSI's formats that the loop reads and writes: RFC 7143 section 11,
 * SBC-3 5. Offsets are into the 48 bytes of a basic header segment (BHS). */
#ifndef BLOCKD_ISCSI_WIRE_H
#define BLOCKD_ISCSI_WIRE_H

enum {
    BD_ISCSI_BHS = 48,
    BD_ISCSI_DIGEST = 4,
    BD_ISCSI_MAX_SEGMENT = 0xffffff, /* the 24 bits of DataSegmentLength; AHS words above them */

    BD_ISCSI_NOP_OUT = 0x00,
    BD_ISCSI_SCSI_COMMAND = 0x01,
    BD_ISCSI_DATA_OUT = 0x05,
    BD_ISCSI_NOP_IN = 0x20,
    BD_ISCSI_SCSI_RESPONSE = 0x21,
    BD_ISCSI_DATA_IN = 0x25,
    BD_ISCSI_R2T = 0x31,
    BD_ISCSI_OPCODE = 0x3f,
    BD_ISCSI_IMMEDIATE = 0x40,

    BD_ISCSI_FINAL = 0x80,
    BD_ISCSI_READ = 0x40,   /* SCSI Command */
    BD_ISCSI_WRITE = 0x20,  /* SCSI Command */
    BD_ISCSI_STATUS = 0x01, /* Data-In */
    BD_ISCSI_ATTRIBUTES = 0x07,
    BD_ISCSI_LAST_ATTRIBUTE = 3, /* untagged, simple, ordered, head of queue; ACA is not served */

    BD_ISCSI_AT_LENGTHS = 4,
    BD_ISCSI_AT_LUN = 8,
    BD_ISCSI_AT_ITT = 16,
    BD_ISCSI_AT_TTT = 20,
    BD_ISCSI_AT_EDTL = 20,   /* SCSI Command */
    BD_ISCSI_AT_CMD_SN = 24, /* of requests; StatSN of responses */
    BD_ISCSI_AT_STAT_SN = 24,
    BD_ISCSI_AT_EXP_CMD_SN = 28,
    BD_ISCSI_AT_MAX_CMD_SN = 32,
    BD_ISCSI_AT_CDB = 32,
    BD_ISCSI_AT_DATA_SN = 36, /* R2TSN of an R2T, ExpDataSN of a SCSI Response */
    BD_ISCSI_AT_OFFSET = 40,
    BD_ISCSI_AT_DESIRED = 44, /* R2T */

    BD_SCSI_READ_6 = 0x08,
    BD_SCSI_WRITE_6 = 0x0a,
    BD_SCSI_READ_10 = 0x28,
    BD_SCSI_WRITE_10 = 0x2a,
    BD_SCSI_SYNCHRONIZE_CACHE_10 = 0x35,
    BD_SCSI_READ_16 = 0x88,
    BD_SCSI_WRITE_16 = 0x8a,
    BD_SCSI_SYNCHRONIZE_CACHE_16 = 0x91,
    BD_SCSI_READ_12 = 0xa8,
    BD_SCSI_WRITE_12 = 0xaa,
    BD_SCSI_DPO = 0x10,
    BD_SCSI_FUA = 0x08,
    BD_SCSI_SYNC_FLAGS = 0x06, /* IMMED and SYNC_NV */
};

#define BD_ISCSI_NO_TAG UINT32_C(0xffffffff)

static inline size_t bd_iscsi_padded(size_t length)
{
    return (length + 3) & ~(size_t)3;
}

#endif
