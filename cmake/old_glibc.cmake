# soma_old_glibc(target): links a library for x86-64 Linux so that it runs on glibc 2.28, whatever is here. glibc 2.34
# gave these functions new versions, and 2.29 pow. A linker takes the newest that it sees. So it sees libraries made here
# first: of the old name, with the old version, and empty. Programs find the true ones, old or new, by that name. All
# functions of libm that the target uses are named, since a linker opens no second library of one name.
set(SOMA_OLD_libdl.so.2 GLIBC_2.2.5 dlclose dlerror dlopen dlsym dlvsym GLIBC_2.3.4 dlmopen)
set(SOMA_OLD_libm.so.6 GLIBC_2.2.5 pow sqrt)
set(SOMA_OLD_librt.so.1 GLIBC_2.2.5 shm_open shm_unlink)
set(SOMA_OLD_libpthread.so.0 GLIBC_2.2.5
  pthread_condattr_setpshared pthread_create pthread_detach pthread_getspecific pthread_join pthread_key_create
  pthread_key_delete pthread_kill pthread_mutex_trylock pthread_mutexattr_destroy pthread_mutexattr_init
  pthread_mutexattr_setpshared pthread_mutexattr_settype pthread_once pthread_rwlock_destroy pthread_rwlock_init
  pthread_rwlock_rdlock pthread_rwlock_timedrdlock pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock
  pthread_rwlock_trywrlock pthread_rwlock_unlock pthread_rwlock_wrlock pthread_rwlockattr_destroy
  pthread_rwlockattr_init pthread_rwlockattr_setpshared pthread_setspecific pthread_spin_destroy pthread_spin_init
  pthread_spin_lock pthread_spin_trylock pthread_spin_unlock sem_destroy sem_init sem_post sem_timedwait sem_trywait
  sem_wait)

function(soma_old_glibc target)
  set(folder ${CMAKE_CURRENT_BINARY_DIR}/old_glibc)
  foreach(name libdl.so.2 libm.so.6 librt.so.1 libpthread.so.0)
    set(code)
    set(versions)
    set(end)
    foreach(word ${SOMA_OLD_${name}})
      if(word MATCHES "^GLIBC_")
        string(APPEND versions "${end}${word} {\n")
        set(end "};\n")
      else()
        string(APPEND versions "${word};\n")
        string(APPEND code "extern \"C\" void ${word}() {}\n")
      endif()
    endforeach()
    file(CONFIGURE OUTPUT ${folder}/${name}.cpp CONTENT "${code}")
    file(CONFIGURE OUTPUT ${folder}/${name}.map CONTENT "${versions}${end}")
    add_library(old_${name} SHARED ${folder}/${name}.cpp)
    set_target_properties(old_${name} PROPERTIES
      CXX_VISIBILITY_PRESET default NO_SONAME ON LIBRARY_OUTPUT_DIRECTORY ${folder})
    target_compile_options(old_${name} PRIVATE -w -fno-builtin)
    target_link_options(old_${name} PRIVATE -nostdlib -Wl,-soname,${name} -Wl,--version-script=${folder}/${name}.map)
    target_link_libraries(${target} PRIVATE old_${name})
  endforeach()
  target_link_options(${target} PRIVATE -Wl,--no-as-needed)  # the archives that need them come later
endfunction()
