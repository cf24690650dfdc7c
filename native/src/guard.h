/* Looking at bytes of a mapped file, some of which the file may not have any more.
 *
 * Who cuts a file short takes its pages out of every mapping of it, and a disk may fail to read a
 * page back: to touch such a page is SIGBUS, which ends the process. Here it is a plain answer.
 *
 * The first use puts a handler of SIGBUS into the process. It knows, by thread, which bytes are
 * being looked at; a signal for any other reason goes to the handler that was there before, or has
 * its usual effect. A thread that blocks SIGBUS is ended by it nevertheless. */
#ifndef BLOCKD_GUARD_H
#define BLOCKD_GUARD_H

#include <stdbool.h>
#include <stddef.h>

/* Have `look` look at [start, start + length), of a mapping. False: a page could not be had, and
 * `look` was left in the middle. It takes no locks, keeps nothing that has to be given back, and
 * does not call this. */
bool bd_guarded(const void *start, size_t length, void (*look)(void *argument), void *argument);

#endif
